#include "core/ops/projection.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>

#include "core/ops/interlude.h"
#include "core/ops/operator.h"
#include "core/ops/put_off_gradients.h"
#include "core/ops/quantised.h"

// Letters: N tokens, D inputs, E outputs.

namespace flashmorph {
namespace {

constexpr int64_t kFewRows = 32;  // fewer are done before oneDNN has started

// x W^T by oneDNN, an operator of LibTorch without a C++ function; absent where LibTorch was built without it.
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, std::string_view,
                                c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

const auto& onednn() {
  static const auto op = [] {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    using Typed = decltype(found->typed<OneDnnLinear>());
    return found && at::globalContext().hasMKLDNN() ? std::optional<Typed>(found->typed<OneDnnLinear>()) : std::nullopt;
  }();
  return op;
}

bool onednn_takes(const at::Tensor& x_ND, const at::Tensor& weight_ED, int64_t rows) {
  return x_ND.is_cpu() && x_ND.scalar_type() == at::kFloat && weight_ED.scalar_type() == at::kFloat &&
         rows >= kFewRows && weight_ED.numel() > 0 && onednn().has_value();
}

at::Tensor by_onednn(const at::Tensor& x_ND, const at::Tensor& weight_ED) {
  return onednn()->call(x_ND, weight_ED, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight_ED, const OptionalTensor& bias_E) {
  const at::Tensor x_ND = x.flatten(0, -2);
  if (!onednn_takes(x_ND, weight_ED, x_ND.size(0))) return at::linear(x, weight_ED, bias_E);
  const at::Tensor y = by_onednn(x_ND, weight_ED);
  if (bias_E) y.add_(*bias_E);
  return y.unflatten(0, x.sizes().slice(0, x.dim() - 1));
}

// dx = dy W;  dW = dy^T x;  db = sum of dy.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dy, const at::Tensor& x,
                                                        const at::Tensor& weight_ED, const OptionalTensor&,
                                                        std::array<bool, 3> wanted) {
  const at::Tensor dy_NE = dy.flatten(0, -2);
  at::Tensor dx, d_weight, d_bias;
  if (wanted[0]) dx = product(dy_NE, weight_ED).view(x.sizes());
  if (wanted[1]) d_weight = product(dy_NE.t(), x.flatten(0, -2));
  if (wanted[2]) d_bias = dy_NE.sum(0);
  return {dx, d_weight, d_bias};
}

struct Project : Operator {
  static constexpr const char* kName = "project";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 3> kTrained = {0, 1, 2};
  static void check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
    TORCH_CHECK(x.dim() >= 2 && weight.dim() == 2 && weight.size(1) == x.size(-1),
                "project: x must be [.., D] and weight [E, D], got ", x.sizes(), " and ", weight.sizes());
    TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "project: bias must be [E]");
    TORCH_CHECK(weight.scalar_type() == x.scalar_type() && (!bias || bias->scalar_type() == x.scalar_type()),
                "project: x, weight and bias must have one dtype");
  }
};

// The same by weights that nobody trains: x is not kept for them.
at::Tensor backward_by_frozen(const at::Tensor& dy, const at::Tensor& weight_ED) {
  const at::Tensor dx = product(dy.flatten(0, -2), weight_ED);
  return dx.unflatten(0, dy.sizes().slice(0, dy.dim() - 1));
}

struct ProjectByFrozen : Project {
  static constexpr const char* kName = "project_by_frozen";
  using Backward = decltype(backward_by_frozen);
  static constexpr std::array<size_t, 1> kTrained = {0};
  static constexpr std::array<size_t, 2> kUnread = {0, 2};
};

// sum += a b, on a card inside the product.
void add_product(at::Tensor& sum_NP, const at::Tensor& a_NM, const at::Tensor& b_MP) {
  if (!a_NM.is_cpu()) return void(sum_NP.addmm_(a_NM, b_MP));
  sum_NP.add_(product(a_NM, b_MP));
}

// Matrices [.., E] that lie side by side in the same rows, as one [N, all E's]; undefined if they do not.
at::Tensor side_by_side(const variable_list& parts) {
  int64_t width = 0;
  for (const at::Tensor& part : parts) {
    const at::Tensor& first = parts.front();
    const bool beside = part.defined() && part.dim() >= 2 && part.is_alias_of(first) && part.stride(-1) == 1 &&
                        part.strides().slice(0, part.dim() - 1) == first.strides().slice(0, first.dim() - 1) &&
                        part.storage_offset() == first.storage_offset() + width;
    if (!beside) return {};
    width += part.size(-1);
  }
  const int64_t rows = parts.front().numel() / std::max<int64_t>(parts.front().size(-1), 1);
  if (parts.front().stride(-2) != width || parts.front().flatten(0, -2).stride(0) != width) return {};
  return parts.front().as_strided({rows, width}, {width, 1});
}

// One node of the graph for all projections of an x, which is kept where a weight is trained.
struct ProjectEach : torch::autograd::Function<ProjectEach> {
  using Context = torch::autograd::AutogradContext;

  // biases: one a weight, or none.
  static variable_list outputs(const at::Tensor& x, at::TensorList weights, at::TensorList biases) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    variable_list y;
    for (size_t i = 0; i < weights.size(); ++i)
      y.push_back(flashmorph::forward(x, weights[i], biases.empty() ? std::nullopt : OptionalTensor(biases[i])));
    return y;
  }

  static variable_list forward(Context* context, const at::Tensor& x, at::TensorList weights, at::TensorList biases) {
    const bool is_trained = std::ranges::any_of(weights, [](const at::Tensor& w) { return w.requires_grad(); });
    variable_list saved(weights.begin(), weights.end());
    saved.push_back(is_trained ? x : at::Tensor());
    context->save_for_backward(saved);
    context->set_materialize_grads(false);
    context->saved_data["biases"] = static_cast<int64_t>(biases.size());
    context->saved_data["later"] = reinterpret_cast<int64_t>(PutOffGradients::collecting());
    return outputs(x, weights, biases);
  }

  // dx = sum over projections of dy W;  dW = dy^T x;  db = sum of dy.
  static variable_list backward(Context* context, const variable_list& upstream) {
    const variable_list saved = context->get_saved_variables();
    const size_t count = upstream.size();
    const bool biased = context->saved_data["biases"].toInt() > 0;
    const at::Tensor& x = saved[count];
    auto* later = reinterpret_cast<PutOffGradients*>(context->saved_data["later"].toInt());
    variable_list gradients(1 + count + (biased ? count : 0));  // of x, of weights, of biases
    if (context->needs_input_grad(0)) gradients[0] = gradient_of_x(upstream, saved);
    for (size_t i = 0; i < count; ++i) {
      if (!upstream[i].defined()) continue;
      const at::Tensor dy_NE = upstream[i].flatten(0, -2);
      if (context->needs_input_grad(1 + i)) {
        const auto d_weight = [dy_NE, x] { return product(dy_NE.t(), x.flatten(0, -2)); };
        if (later != nullptr && saved[i].is_leaf())
          later->add(saved[i], d_weight);
        else
          gradients[1 + i] = d_weight();
      }
      if (biased && context->needs_input_grad(1 + count + i)) gradients[1 + count + i] = dy_NE.sum(0);
    }
    return gradients;
  }

 private:
  static at::Tensor gradient_of_x(const variable_list& upstream, const variable_list& saved) {
    const at::TensorList weights(saved.data(), upstream.size());
    at::Tensor dx_ND;
    if (const at::Tensor dy_NE = side_by_side(upstream); dy_NE.defined() && upstream.size() > 1)
      return product(dy_NE, at::cat(weights)).unflatten(0, upstream_sizes(upstream));
    for (size_t i = 0; i < upstream.size(); ++i) {
      if (!upstream[i].defined()) continue;
      const at::Tensor dy_NE = upstream[i].flatten(0, -2);
      if (dx_ND.defined())
        add_product(dx_ND, dy_NE, weights[i]);
      else
        dx_ND = product(dy_NE, weights[i]);
    }
    return dx_ND.defined() ? dx_ND.unflatten(0, upstream_sizes(upstream)) : at::Tensor();
  }

  static at::IntArrayRef upstream_sizes(const variable_list& upstream) {
    const auto given = std::ranges::find_if(upstream, [](const at::Tensor& dy) { return dy.defined(); });
    return given->sizes().slice(0, given->dim() - 1);
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<Project>(library, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
                   "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
  declare<ProjectByFrozen>(library, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
                           "(Tensor dy, Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("project", forward);
  library.impl("project_backward", backward);
  library.impl("project_by_frozen", forward);
  library.impl("project_by_frozen_backward", backward_by_frozen);
}

at::Tensor project(const at::Tensor& x, const at::Tensor& weight_ED, const at::Tensor& bias_E) {
  const at::TensorList biases = bias_E.defined() ? at::TensorList(bias_E) : at::TensorList();
  if (const QuantisedMatrices* quantised = QuantisedMatrices::of(weight_ED)) return quantised->project(x, biases)[0];
  if (PutOffGradients::collecting() != nullptr && weight_ED.requires_grad())
    return project_each(x, {weight_ED}, biases).front();
  if (!x.is_cpu()) return at::linear(x, weight_ED, present(bias_E));  // whose nodes cost the host less
  const bool is_trained = weight_ED.requires_grad() || (bias_E.defined() && bias_E.requires_grad());
  return is_trained ? call<Project>(x, weight_ED, present(bias_E))
                    : call<ProjectByFrozen>(x, weight_ED, present(bias_E));
}

variable_list project_each(const at::Tensor& x, at::TensorList weights, at::TensorList biases) {
  const auto is_there = [](const at::Tensor& bias) { return bias.defined(); };
  const at::TensorList given = std::ranges::any_of(biases, is_there) ? biases : at::TensorList();
  const QuantisedMatrices* quantised = QuantisedMatrices::of(weights);
  const size_t joined = quantised != nullptr ? quantised->count() : given.empty() ? weights.size() : given.size();
  TORCH_CHECK(
      joined <= weights.size() && (given.empty() || given.size() == joined) && std::ranges::all_of(given, is_there),
      "project_each: a bias for each weight of the first ones, or for none");
  for (size_t i = 0; i < joined; ++i)
    Project::check(x, weights[i], given.empty() ? std::nullopt : OptionalTensor(given[i]));
  const at::TensorList first = weights.slice(0, joined);
  variable_list y = quantised != nullptr          ? quantised->project(x, given)
                    : c10::GradMode::is_enabled() ? ProjectEach::apply(x, first, given)
                                                  : ProjectEach::outputs(x, first, given);  // without a node
  Interlude::reached();
  for (const at::Tensor& other : weights.slice(joined)) y.push_back(project(x, other));
  return y;
}

at::Tensor product(const at::Tensor& a_NM, const at::Tensor& b_MP) {
  if (onednn_takes(a_NM, b_MP, a_NM.size(0))) return by_onednn(a_NM, b_MP.t());
  return at::mm(a_NM, b_MP);
}

}  // namespace flashmorph
