#include "core/ops/short_convolution.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

// Letters: B batch, T tokens, C channels, W taps, P past tokens.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

// The tokens that a lag connects: of the outputs those from `first`, and of [past, x] as many from `source`.
struct Lag {
  int64_t first, source, count;
  Lag(int64_t lag, int64_t tokens, int64_t past)
      : first(std::min(std::max<int64_t>(lag - past, 0), tokens)),
        source(std::max<int64_t>(first + past - lag, 0)),
        count(tokens - first) {}
};

// [count, 1]: whether token t - lag belongs to the document of t.
Optional same_document(const Optional& documents, int64_t lag, int64_t first, const at::Tensor& like) {
  if (!documents) return std::nullopt;
  const int64_t count = documents->size(0) - 1;
  const at::Tensor begin = documents->narrow(0, 0, count).repeat_interleave(documents->diff());
  const at::Tensor own = at::arange(begin.size(0)) - lag >= begin;
  return own.slice(0, first).unsqueeze(1).to(like.options().requires_grad(false));
}

at::Tensor masked(const at::Tensor& x, const Optional& mask) { return mask ? x * *mask : x; }

at::Tensor with_past(const at::Tensor& x_BTC, const Optional& past) {
  return past ? at::cat({*past, x_BTC}, 1) : x_BTC;
}

at::Tensor forward(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const Optional& past,
                   const Optional& documents) {
  const int64_t T = x_BTC.size(1), W = weight_CW.size(1), P = past ? past->size(1) : 0;
  const at::Tensor all = with_past(x_BTC, past);
  at::Tensor y = x_BTC * weight_CW.select(1, W - 1);
  for (int64_t l = 1; l < W; ++l) {
    const Lag lag(l, T, P);
    const at::Tensor earlier = masked(all.narrow(1, lag.source, lag.count), same_document(documents, l, lag.first, y));
    y.narrow(1, lag.first, lag.count).addcmul_(earlier, weight_CW.select(1, W - 1 - l));
  }
  return y;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& dy_BTC, const at::Tensor& x_BTC,
                                            const at::Tensor& weight_CW, const Optional& past,
                                            const Optional& documents) {
  const int64_t T = x_BTC.size(1), W = weight_CW.size(1), P = past ? past->size(1) : 0;
  const at::Tensor all = with_past(x_BTC, past);
  at::Tensor d_all = at::zeros_like(all), d_weight = at::empty_like(weight_CW);
  for (int64_t l = 0; l < W; ++l) {
    const Lag lag(l, T, P);
    const at::Tensor dy =
        masked(dy_BTC.narrow(1, lag.first, lag.count), same_document(documents, l, lag.first, dy_BTC));
    d_all.narrow(1, lag.source, lag.count).addcmul_(dy, weight_CW.select(1, W - 1 - l));
    d_weight.select(1, W - 1 - l).copy_((dy * all.narrow(1, lag.source, lag.count)).sum(at::IntArrayRef{0, 1}));
  }
  return {d_all.narrow(1, P, T), d_weight};
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

const auto& forward_op() {
  static const auto op = operator_named<decltype(forward)>("flashmorph::short_convolution");
  return op;
}

struct ShortConvolution : Function<ShortConvolution> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const Optional& past, const Optional& documents) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, weight, past.value_or(at::Tensor()), documents.value_or(at::Tensor())});
    return forward_op().call(x, weight, past, documents);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto op = operator_named<std::tuple<at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const Optional&, const Optional&)>(
        "flashmorph::short_convolution_backward");
    const variable_list saved = context->get_saved_variables();
    const auto present = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    const auto [dx, d_weight] = op.call(gradients[0], saved[0], saved[1], present(saved[2]), present(saved[3]));
    return {dx, d_weight, at::Tensor(), at::Tensor()};
  }
};

at::Tensor with_gradient(const at::Tensor& x, const at::Tensor& weight, const Optional& past,
                         const Optional& documents) {
  TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2) && weight.size(1) >= 1,
              "short_convolution: x must be [B, T, C] and weight [C, W]");
  TORCH_CHECK(!past || (past->dim() == 3 && past->size(0) == x.size(0) && past->size(2) == x.size(2)),
              "short_convolution: past must be [B, P, C]");
  TORCH_CHECK(!documents || (!past && x.size(0) == 1 && documents->dim() == 1 && documents->size(0) >= 2 &&
                             (*documents)[-1].item<int64_t>() == x.size(1)),
              "short_convolution: documents lie in one row, end with it and have no past");
  return ShortConvolution::apply(x, weight, past, documents);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("short_convolution(Tensor x, Tensor weight, Tensor? past, Tensor? documents) -> Tensor");
  library.def(
      "short_convolution_backward(Tensor dy, Tensor x, Tensor weight, Tensor? past, Tensor? documents)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("short_convolution", forward);
  library.impl("short_convolution_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Autograd, library) { library.impl("short_convolution", with_gradient); }

at::Tensor short_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const Optional& past_BPC,
                             const Optional& documents) {
  return forward_op().call(x_BTC, weight_CW, past_BPC, documents);
}

}  // namespace flashmorph
