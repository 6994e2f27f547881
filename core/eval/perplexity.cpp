#include "core/eval/perplexity.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/data/sample_stream.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {

LikelihoodSum text_likelihood(const MorphableModel& model, const Routes& routes, TokenView text, int64_t length,
                              int64_t first, int64_t last) {
  const c10::NoGradGuard no_gradient;
  LikelihoodSum sum;
  for (int64_t window = first; window < last; ++window) {
    const auto part = text.subspan(static_cast<size_t>(window * length), static_cast<size_t>(length));
    const Batch batch = batch_of({{part.tokens(), {}, part.document_starts()}});
    const Positions positions = model.positions(0, length, batch.documents);
    const at::Tensor hidden = model.forward(batch.tokens_BT, routes, positions);
    if (!model.has_head()) continue;
    const at::Tensor places = predicting_places(batch);
    sum.negative_log += cross_entropy(hidden.flatten(0, 1).index_select(0, places.to(hidden.device())), model.head(),
                                      batch.tokens_BT.flatten().index_select(0, places + 1), model.shard())
                            .item<double>();
    sum.tokens += places.numel();
  }
  return sum;
}

}  // namespace flashmorph
