#include "core/eval/perplexity.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "core/ops/vocabulary_loss.h"

namespace flashmorph {

LikelihoodSum text_likelihood(const MorphableModel& model, const Routes& routes, std::span<const int32_t> text,
                              int64_t length, int64_t first, int64_t last) {
  const c10::NoGradGuard no_gradient;
  const Positions positions = model.positions(0, length - 1);
  LikelihoodSum sum;
  for (int64_t window = first; window < last; ++window) {
    const auto part = text.subspan(static_cast<size_t>(window * length), static_cast<size_t>(length));
    const at::Tensor tokens = at::tensor(std::vector<int64_t>(part.begin(), part.end()), at::kLong);
    const at::Tensor hidden = model.forward(tokens.narrow(0, 0, length - 1).unsqueeze(0), routes, positions);
    if (!model.has_head()) continue;
    sum.negative_log +=
        cross_entropy(hidden.squeeze(0), model.head(), tokens.narrow(0, 1, length - 1), model.shard()).item<double>();
    sum.tokens += length - 1;
  }
  return sum;
}

}  // namespace flashmorph
