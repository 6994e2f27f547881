#include "core/ops/linear_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

// Declares the operators, checks their arguments and gives them their gradients, for every device; *_cpu.cpp computes.
// X_backward returns the gradients of q, k, v (and the trained decays) and, last, of the initial state.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

template <class... Input>
struct Signatures {
  static constexpr size_t kInputs = sizeof...(Input);
  using Forward = std::tuple<at::Tensor, at::Tensor>(const Input&..., const Optional&, const Optional&, double,
                                                     int64_t);
  using Backward = std::vector<at::Tensor>(const at::Tensor&, const Optional&, const Input&..., const Optional&,
                                           const Optional&, double, int64_t);
};

// q, k, v and a decay.
using FourInputs = Signatures<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using FiveInputs = Signatures<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct Lightning : FourInputs {
  static constexpr const char *kName = "flashmorph::lightning_attention",
                              *kBackward = "flashmorph::lightning_attention_backward";
  static constexpr size_t kTrained = 3;  // the first inputs, that have gradients
  static void check_decays(const variable_list& in) {
    TORCH_CHECK(in[3].dim() == 1 && in[3].size(0) == in[0].size(2), kName, ": log_decay must be [H]");
  }
};

struct GatedLinear : FourInputs {
  static constexpr const char *kName = "flashmorph::gated_linear_attention",
                              *kBackward = "flashmorph::gated_linear_attention_backward";
  static constexpr size_t kTrained = 4;
  static void check_decays(const variable_list& in) {
    TORCH_CHECK(in[3].sizes() == in[0].sizes(), kName, ": g must be [B, T, H, K], as q is");
  }
};

struct GatedDelta : FiveInputs {
  static constexpr const char *kName = "flashmorph::gated_delta_rule",
                              *kBackward = "flashmorph::gated_delta_rule_backward";
  static constexpr size_t kTrained = 5;
  static void check_decays(const variable_list& in) {
    for (const size_t i : {3, 4})
      TORCH_CHECK(in[i].sizes() == in[0].sizes().slice(0, 3), kName, ": g and beta must be [B, T, H]");
  }
};

// How many documents the offsets describe.
int64_t check_documents(const char* name, const at::Tensor& documents, int64_t batch, int64_t tokens) {
  TORCH_CHECK(batch == 1, name, ": packed documents lie in one row, the batch is ", batch);
  TORCH_CHECK(
      documents.dim() == 1 && documents.size(0) >= 2 && documents.scalar_type() == at::kLong && documents.is_cpu(),
      name, ": documents must be int64 offsets on the CPU, one more than there are documents");
  const at::Tensor offsets = documents.contiguous();
  const int64_t *first = offsets.const_data_ptr<int64_t>(), *last = first + offsets.size(0) - 1;
  TORCH_CHECK(*first == 0 && *last == tokens, name, ": documents must go from 0 to ", tokens, ", found ", *first,
              " to ", *last);
  for (const int64_t* at = first; at < last; ++at)
    TORCH_CHECK(at[0] < at[1], name, ": documents must increase, found ", at[1], " after ", at[0]);
  return documents.size(0) - 1;
}

template <class Op>
void check(const variable_list& in, const Optional& initial, const Optional& documents, int64_t chunk) {
  const at::Tensor &q = in[0], &k = in[1], &v = in[2];
  TORCH_CHECK(q.dim() == 4 && k.sizes() == q.sizes(), Op::kName, ": q and k must be [B, T, H, K]");
  TORCH_CHECK(v.dim() == 4 && v.sizes().slice(0, 3) == q.sizes().slice(0, 3), Op::kName, ": v must be [B, T, H, V]");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), Op::kName,
              ": q, k and v must have one dtype");
  TORCH_CHECK(q.size(1) >= 1 && chunk >= 1, Op::kName, ": chunk and tokens must be at least 1");
  Op::check_decays(in);
  const int64_t sequences = documents ? check_documents(Op::kName, *documents, q.size(0), q.size(1)) : q.size(0);
  TORCH_CHECK(!initial || initial->sizes().equals({sequences, q.size(2), q.size(3), v.size(3)}), Op::kName,
              ": the initial state must be [", sequences, ", H, K, V]");
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class Op>
auto& forward_op() {
  static auto op = operator_named<typename Op::Forward>(Op::kName);
  return op;
}

template <class Op>
struct Recurrence : Function<Recurrence<Op>> {
  using Places = std::make_index_sequence<Op::kInputs>;

  static variable_list forward(AutogradContext* context, at::TensorList inputs, const Optional& initial,
                               const Optional& documents, double scale, int64_t chunk) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    variable_list saved = inputs.vec();
    saved.push_back(initial.value_or(at::Tensor()));
    saved.push_back(documents.value_or(at::Tensor()));
    context->save_for_backward(saved);
    context->saved_data["scale"] = scale;
    context->saved_data["chunk"] = chunk;
    context->set_materialize_grads(false);
    return [&]<size_t... I>(std::index_sequence<I...>) {
      const auto [output, state] = forward_op<Op>().call(inputs[I]..., initial, documents, scale, chunk);
      return variable_list{output, state};
    }
    (Places());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static auto op = operator_named<typename Op::Backward>(Op::kBackward);
    const variable_list saved = context->get_saved_variables();
    const auto present = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    const Optional initial = present(saved[Op::kInputs]), documents = present(saved[Op::kInputs + 1]);
    const at::Tensor d_output = gradients[0].defined() ? gradients[0] : at::zeros_like(saved[2]);
    const std::vector<at::Tensor> found = [&]<size_t... I>(std::index_sequence<I...>) {
      return op.call(d_output, present(gradients[1]), saved[I]..., initial, documents,
                     context->saved_data["scale"].toDouble(), context->saved_data["chunk"].toInt());
    }
    (Places());
    variable_list result(Op::kInputs + 4);  // the inputs, the initial state, documents, scale, chunk
    std::copy_n(found.begin(), Op::kTrained, result.begin());
    if (initial) result[Op::kInputs] = found.at(Op::kTrained).to(initial->scalar_type());
    return result;
  }
};

template <class Op, class... Input>
std::tuple<at::Tensor, at::Tensor> checked(const Optional& initial, const Optional& documents, double scale,
                                           int64_t chunk, const Input&... input) {
  const variable_list inputs = {input...};
  check<Op>(inputs, initial, documents, chunk);
  const variable_list results = Recurrence<Op>::apply(at::TensorList(inputs), initial, documents, scale, chunk);
  return {results[0], results[1]};
}

template <class Op>
std::tuple<at::Tensor, at::Tensor> with_gradient(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& g, const Optional& initial,
                                                 const Optional& documents, double scale, int64_t chunk) {
  return checked<Op>(initial, documents, scale, chunk, q, k, v, g);
}

std::tuple<at::Tensor, at::Tensor> delta_with_gradient(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                       const at::Tensor& g, const at::Tensor& beta,
                                                       const Optional& initial, const Optional& documents, double scale,
                                                       int64_t chunk) {
  return checked<GatedDelta>(initial, documents, scale, chunk, q, k, v, g, beta);
}

void declare(torch::Library& library, const std::string& name, const std::string& inputs) {
  const std::string rest = inputs + ", Tensor? initial_state, Tensor? documents, float scale, int chunk)";
  library.def((name + "(" + rest + " -> (Tensor output, Tensor final_state)").c_str());
  library.def((name + "_backward(Tensor d_output, Tensor? d_final_state, " + rest + " -> Tensor[]").c_str());
}

}  // namespace

TORCH_LIBRARY(flashmorph, library) {
  declare(library, "lightning_attention", "Tensor q, Tensor k, Tensor v, Tensor log_decay");
  declare(library, "gated_linear_attention", "Tensor q, Tensor k, Tensor v, Tensor g");
  declare(library, "gated_delta_rule", "Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta");
}

TORCH_LIBRARY_IMPL(flashmorph, Autograd, library) {
  library.impl("lightning_attention", with_gradient<Lightning>);
  library.impl("gated_linear_attention", with_gradient<GatedLinear>);
  library.impl("gated_delta_rule", delta_with_gradient);
}

LinearAttentionResult lightning_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const at::Tensor& log_decay_H, const Optional& initial_state,
                                          const Optional& documents, double scale, int64_t chunk) {
  const auto [output, state] =
      forward_op<Lightning>().call(q, k, v, log_decay_H, initial_state, documents, scale, chunk);
  return {output, state};
}

LinearAttentionResult gated_linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& g_BTHK, const Optional& initial_state,
                                             const Optional& documents, double scale, int64_t chunk) {
  const auto [output, state] = forward_op<GatedLinear>().call(q, k, v, g_BTHK, initial_state, documents, scale, chunk);
  return {output, state};
}

LinearAttentionResult gated_delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& g_BTH, const at::Tensor& beta_BTH,
                                       const Optional& initial_state, const Optional& documents, double scale,
                                       int64_t chunk) {
  const auto [output, state] =
      forward_op<GatedDelta>().call(q, k, v, g_BTH, beta_BTH, initial_state, documents, scale, chunk);
  return {output, state};
}

}  // namespace flashmorph
