#include "core/select/rules.h"

#include <algorithm>
#include <numeric>

namespace flashmorph {
namespace {

std::vector<int64_t> ranking(const std::vector<double>& scores) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

std::vector<int64_t> top_layers(const std::vector<double>& scores, int64_t keep) {
  std::vector<int64_t> kept = ranking(scores);
  kept.resize(std::min(kept.size(), static_cast<size_t>(keep)));
  std::sort(kept.begin(), kept.end());
  return kept;
}

std::vector<int64_t> uniform_layers(int64_t layers, int64_t keep) {
  std::vector<int64_t> kept;
  for (int64_t k = 0; k < keep; ++k) kept.push_back((2 * k + 1) * layers / (2 * keep));
  return kept;
}

double keep_margin(const std::vector<double>& scores, int64_t keep) {
  if (keep <= 0 || keep >= static_cast<int64_t>(scores.size())) return 0.0;
  const std::vector<int64_t> order = ranking(scores);
  return scores[order[keep - 1]] - scores[order[keep]];
}

}  // namespace flashmorph
