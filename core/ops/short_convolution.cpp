#include "core/ops/short_convolution.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/ops/operator.h"

// Letters: B batch, T tokens, C channels, W taps, P past tokens.

namespace flashmorph {
namespace {

// The tokens that a lag connects: of the outputs those from `first`, and of [past, x] as many from `source`.
struct Lag {
  int64_t first, source, count;
  Lag(int64_t lag, int64_t tokens, int64_t past)
      : first(std::min(std::max<int64_t>(lag - past, 0), tokens)),
        source(std::max<int64_t>(first + past - lag, 0)),
        count(tokens - first) {}
};

// x of tokens from `first`, zero where the token a lag before is of another document.
at::Tensor inside(const OptionalTensor& place_T, int64_t lag, int64_t first, const at::Tensor& x) {
  return place_T && lag > 0 ? x * place_T->slice(0, first).ge(lag).unsqueeze(1) : x;
}

at::Tensor with_past(const at::Tensor& x_BTC, const OptionalTensor& past) {
  return past ? at::cat({*past, x_BTC}, 1) : x_BTC;
}

}  // namespace

at::Tensor composed_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const OptionalTensor& past,
                                const OptionalTensor& place_T, bool silu) {
  const int64_t T = x_BTC.size(1), W = weight_CW.size(1), P = past ? past->size(1) : 0;
  const at::Tensor all = with_past(x_BTC, past);
  at::Tensor y = x_BTC * weight_CW.select(1, W - 1);
  for (int64_t l = 1; l < W; ++l) {
    const Lag lag(l, T, P);
    const at::Tensor earlier = inside(place_T, l, lag.first, all.narrow(1, lag.source, lag.count));
    y.narrow(1, lag.first, lag.count).addcmul_(earlier, weight_CW.select(1, W - 1 - l));
  }
  return silu ? at::silu_(y) : y;
}

std::tuple<at::Tensor, at::Tensor> composed_convolution_gradients(const at::Tensor& dy_BTC, const at::Tensor& x_BTC,
                                                                  const at::Tensor& weight_CW,
                                                                  const OptionalTensor& past,
                                                                  const OptionalTensor& place_T, bool silu,
                                                                  std::array<bool, 2> wanted) {
  const int64_t T = x_BTC.size(1), W = weight_CW.size(1), P = past ? past->size(1) : 0;
  const at::Tensor all = with_past(x_BTC, past);
  const at::Tensor dz_BTC =
      silu ? at::silu_backward(dy_BTC, composed_convolution(x_BTC, weight_CW, past, place_T, /*silu=*/false)) : dy_BTC;
  at::Tensor d_all = at::zeros_like(all), d_weight;
  if (wanted[1]) d_weight = at::empty_like(weight_CW);
  for (int64_t l = 0; l < W; ++l) {
    const Lag lag(l, T, P);
    const at::Tensor dz = inside(place_T, l, lag.first, dz_BTC.narrow(1, lag.first, lag.count));
    d_all.narrow(1, lag.source, lag.count).addcmul_(dz, weight_CW.select(1, W - 1 - l));
    if (wanted[1])
      d_weight.select(1, W - 1 - l).copy_((dz * all.narrow(1, lag.source, lag.count)).sum(at::IntArrayRef{0, 1}));
  }
  return {d_all.narrow(1, P, T), d_weight};
}

namespace {

// Without values: what a card's kernels allocate.
at::Tensor forward_without_values(const at::Tensor& x, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                  bool) {
  return at::empty(x.sizes(), x.options());
}

std::tuple<at::Tensor, at::Tensor> backward_without_values(const at::Tensor&, const at::Tensor& x,
                                                           const at::Tensor& weight, const OptionalTensor&,
                                                           const OptionalTensor&, bool, std::array<bool, 2> wanted) {
  return {at::empty(x.sizes(), x.options()), wanted[1] ? at::empty_like(weight) : at::Tensor()};
}

struct ShortConvolution : Operator {
  static constexpr const char* kName = "short_convolution";
  using Forward = decltype(composed_convolution);
  using Backward = decltype(composed_convolution_gradients);
  static constexpr std::array<size_t, 2> kTrained = {0, 1};
  static void check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& past,
                    const OptionalTensor& place_T, bool) {
    TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2) && weight.size(1) >= 1 &&
                    weight.scalar_type() == x.scalar_type(),
                "short_convolution: x must be [B, T, C] and weight [C, W], of one dtype");
    TORCH_CHECK(!past || (past->dim() == 3 && past->size(0) == x.size(0) && past->size(2) == x.size(2)),
                "short_convolution: past must be [B, P, C]");
    TORCH_CHECK(
        !place_T || (!past && place_T->dim() == 1 && place_T->size(0) == x.size(1) && place_T->device() == x.device()),
        "short_convolution: places are one a token, on x's device, and have no past");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<ShortConvolution>(
      library, "(Tensor x, Tensor weight, Tensor? past, Tensor? place, bool silu) -> Tensor",
      "(Tensor dy, Tensor x, Tensor weight, Tensor? past, Tensor? place, bool silu, bool[2] wanted)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("short_convolution", composed_convolution);
  library.impl("short_convolution_backward", composed_convolution_gradients);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("short_convolution", forward_without_values);
  library.impl("short_convolution_backward", backward_without_values);
}

at::Tensor short_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const OptionalTensor& past_BPC,
                             const OptionalTensor& place_T, bool silu) {
  return call<ShortConvolution>(x_BTC, weight_CW, past_BPC, place_T, silu);
}

}  // namespace flashmorph
