#include "core/select/rules.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace flashmorph {
namespace {

void check_keep(int64_t layers, int64_t keep) {
  TORCH_CHECK(keep >= 0 && keep <= layers, "cannot keep ", keep, " of ", layers, " layers");
}

// From the largest score to the smallest; equal ones in layer order.
std::vector<int64_t> ranking(const std::vector<double>& scores) {
  TORCH_CHECK(std::none_of(scores.begin(), scores.end(), [](double score) { return std::isnan(score); }),
              "a score is not a number");
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

std::vector<int64_t> top_layers(const std::vector<double>& scores, int64_t keep) {
  check_keep(static_cast<int64_t>(scores.size()), keep);
  std::vector<int64_t> kept = ranking(scores);
  kept.resize(keep);
  std::sort(kept.begin(), kept.end());
  return kept;
}

std::vector<int64_t> uniform_layers(int64_t layers, int64_t keep) {
  check_keep(layers, keep);
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
