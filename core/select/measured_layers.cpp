#include "core/select/measured_layers.h"

#include <algorithm>
#include <numeric>

namespace flashmorph {

std::vector<int64_t> all_layers(int64_t layers) {
  std::vector<int64_t> all(static_cast<size_t>(layers));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<Judgement> each_layer_linear(const Judge& judge, int64_t layers) {
  std::vector<Judgement> judgements(static_cast<size_t>(layers));
  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    std::vector<int64_t> kept = all_layers(layers);
    kept.erase(kept.begin() + layer);
    judgements[layer] = judge(kept);
  }
  return judgements;
}

std::vector<double> halo_scores(const std::vector<double>& commonsense, const std::vector<double>& recall) {
  const double most_sense = std::ranges::max(commonsense), most_recall = std::ranges::max(recall);
  std::vector<double> scores;
  for (size_t layer = 0; layer < recall.size(); ++layer)
    scores.push_back(std::min(50.0, (most_recall - recall[layer]) / (most_sense - commonsense[layer] + 1e-10)));
  return scores;
}

}  // namespace flashmorph
