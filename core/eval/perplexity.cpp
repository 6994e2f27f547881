#include "core/eval/perplexity.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>

#include "core/data/sample_stream.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

// Where the token after each of these places of a row stands in its document.
std::vector<int64_t> places_of_next(const at::Tensor& places, const std::optional<at::Tensor>& documents) {
  std::vector<int64_t> offsets = {0};
  if (documents) {
    const auto* first = documents->const_data_ptr<int64_t>();
    offsets.assign(first, first + documents->size(0));
  }
  std::vector<int64_t> next;
  for (int64_t i = 0; i < places.numel(); ++i) {
    const int64_t place = places.const_data_ptr<int64_t>()[i];
    next.push_back(place + 1 - *(std::ranges::upper_bound(offsets, place) - 1));
  }
  return next;
}

}  // namespace

LikelihoodSum text_likelihood(const MorphableModel& model, const Routes& routes, TokenView text, int64_t length,
                              int64_t first, int64_t last) {
  return likelihood_by_place(model, routes, text, length, first, last, {0, length})[0];
}

std::vector<LikelihoodSum> likelihood_by_place(const MorphableModel& model, const Routes& routes, TokenView text,
                                               int64_t length, int64_t first, int64_t last,
                                               const std::vector<int64_t>& edges) {
  const c10::NoGradGuard no_gradient;
  std::vector<LikelihoodSum> sums(edges.size() - 1);
  for (int64_t window = first; window < last; ++window) {
    const auto part = text.subspan(static_cast<size_t>(window * length), static_cast<size_t>(length));
    const Batch batch = batch_of({{part.tokens(), {}, part.document_starts()}});
    const at::Tensor hidden = model.forward(batch.tokens_BT, routes, model.positions(0, length, batch.documents));
    if (!model.has_head()) continue;
    const at::Tensor places = predicting_places(batch);
    const std::vector<int64_t> next = places_of_next(places, batch.documents);
    for (size_t b = 0; b < sums.size(); ++b) {
      std::vector<int64_t> own;
      for (size_t i = 0; i < next.size(); ++i)
        if (edges[b] <= next[i] && next[i] < edges[b + 1]) own.push_back(places.const_data_ptr<int64_t>()[i]);
      if (own.empty()) continue;
      const at::Tensor own_N = at::tensor(own, at::kLong);
      sums[b] += {cross_entropy(hidden.flatten(0, 1).index_select(0, own_N.to(hidden.device())), model.head(),
                                batch.tokens_BT.flatten().index_select(0, own_N + 1), model.shard())
                      .item<double>(),
                  own_N.numel()};
    }
  }
  return sums;
}

}  // namespace flashmorph
