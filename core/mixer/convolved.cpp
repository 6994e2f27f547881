#include "core/mixer/convolved.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core/ops/short_convolution.h"

namespace flashmorph {
namespace {

void keep_recent(const at::Tensor& x_BTC, LayerCache& cache) {
  const at::Tensor all = cache.recent_BPC.defined() ? at::cat({cache.recent_BPC, x_BTC}, 1) : x_BTC;
  const int64_t kept = std::min(kTaps - 1, all.size(1));
  cache.recent_BPC = all.narrow(1, all.size(1) - kept, kept).clone();
}

}  // namespace

at::Tensor delta_taps(int64_t channels, const at::TensorOptions& options) {
  at::Tensor taps = at::zeros({channels, kTaps}, options);
  taps.select(1, kTaps - 1).fill_(1.0);
  return taps;
}

std::array<at::Tensor, 3> convolved(const std::array<at::Tensor, 3>& x_BTC, const std::array<at::Tensor, 3>& taps_CW,
                                    const Positions& positions, LayerCache* cache) {
  const bool continues = cache != nullptr && cache->recent_BPC.defined();
  const std::vector<at::Tensor> past = continues ? cache->recent_BPC.chunk(3, -1) : std::vector<at::Tensor>();
  if (cache != nullptr) keep_recent(at::cat(x_BTC, -1), *cache);
  std::array<at::Tensor, 3> y_BTC;
  for (size_t i = 0; i < 3; ++i)
    y_BTC[i] =
        short_convolution(x_BTC[i], taps_CW[i], continues ? std::optional(past[i]) : std::nullopt, positions.place_T);
  return y_BTC;
}

}  // namespace flashmorph
