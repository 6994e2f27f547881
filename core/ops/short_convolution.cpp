#include "core/ops/short_convolution.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <tuple>

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

// [count, 1]: whether token t - lag belongs to the document of t.
OptionalTensor same_document(const OptionalTensor& documents, int64_t lag, int64_t first, const at::Tensor& like) {
  if (!documents) return std::nullopt;
  const int64_t count = documents->size(0) - 1;
  const at::Tensor begin = documents->narrow(0, 0, count).repeat_interleave(documents->diff());
  const at::Tensor own = at::arange(begin.size(0)) - lag >= begin;
  return own.slice(0, first).unsqueeze(1).to(like.options().requires_grad(false));
}

at::Tensor masked(const at::Tensor& x, const OptionalTensor& mask) { return mask ? x * *mask : x; }

at::Tensor with_past(const at::Tensor& x_BTC, const OptionalTensor& past) {
  return past ? at::cat({*past, x_BTC}, 1) : x_BTC;
}

at::Tensor forward(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const OptionalTensor& past,
                   const OptionalTensor& documents) {
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
                                            const at::Tensor& weight_CW, const OptionalTensor& past,
                                            const OptionalTensor& documents) {
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

struct ShortConvolution : Operator {
  static constexpr const char* kName = "short_convolution";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 2> kTrained = {0, 1};
  static void check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& past,
                    const OptionalTensor& documents) {
    TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2) && weight.size(1) >= 1,
                "short_convolution: x must be [B, T, C] and weight [C, W]");
    TORCH_CHECK(!past || (past->dim() == 3 && past->size(0) == x.size(0) && past->size(2) == x.size(2)),
                "short_convolution: past must be [B, P, C]");
    TORCH_CHECK(!documents || (!past && x.size(0) == 1 && documents->dim() == 1 && documents->size(0) >= 2 &&
                               (*documents)[-1].item<int64_t>() == x.size(1)),
                "short_convolution: documents lie in one row, end with it and have no past");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<ShortConvolution>(library, "(Tensor x, Tensor weight, Tensor? past, Tensor? documents) -> Tensor",
                            "(Tensor dy, Tensor x, Tensor weight, Tensor? past, Tensor? documents)"
                            " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("short_convolution", forward);
  library.impl("short_convolution_backward", backward);
}

at::Tensor short_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const OptionalTensor& past_BPC,
                             const OptionalTensor& documents) {
  return call<ShortConvolution>(x_BTC, weight_CW, past_BPC, documents);
}

}  // namespace flashmorph
