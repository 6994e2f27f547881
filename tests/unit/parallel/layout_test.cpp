#include "distributed/parallel/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <utility>

#include "core/base/bad_input.h"
#include "core/model/cost.h"
#include "distributed/parallel/layer_cuts.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

std::vector<int64_t> counts(const std::vector<LayerRange>& ranges) {
  std::vector<int64_t> counts;
  for (const LayerRange& range : ranges) counts.push_back(range.count());
  return counts;
}

TEST(BalancedLayers, AreEvenAndSmallFirst) {
  const std::vector<double> same(28, 1.0);
  EXPECT_THAT(counts(balanced_layers({.layers = same}, 8)), testing::ElementsAre(3, 3, 3, 3, 4, 4, 4, 4));
  EXPECT_THAT(counts(balanced_layers({.layers = same, .head = 6.0}, 8)), testing::ElementsAre(3, 4, 4, 4, 4, 4, 4, 1));
  EXPECT_THAT(counts(balanced_layers({.embedding = 3.0, .layers = same}, 2)), testing::ElementsAre(12, 16));
  EXPECT_THAT(counts(balanced_layers({.layers = std::vector<double>(5, 0.0)}, 5)), testing::ElementsAre(1, 1, 1, 1, 1));
}

double cost_of(const PartCosts& costs, const std::vector<LayerRange>& ranges) {
  double most = 0.0;
  for (const LayerRange& range : ranges) {
    double cost = range.first == 0 ? costs.embedding : 0.0;
    for (int64_t l = range.first; l < range.last; ++l) cost += costs.layers[l];
    most = std::max(most, cost + (range.last == static_cast<int64_t>(costs.layers.size()) ? costs.head : 0.0));
  }
  return most;
}

TEST(BalancedLayers, NoOtherCutIsCheaper) {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    PartCosts costs{.embedding = double(random() % 5), .head = double(random() % 9)};
    for (int l = 0; l < 8; ++l) costs.layers.push_back(1.0 + random() % 7);
    const double found = cost_of(costs, balanced_layers(costs, 3));
    for (int64_t a = 1; a < 8; ++a)
      for (int64_t b = a + 1; b < 8; ++b) EXPECT_LE(found, cost_of(costs, {{0, a}, {a, b}, {b, 8}}));
  }
}

std::string complaint(int64_t ranks, const ParallelSection& parallel) {
  const ModelSpec spec{
      .vocabulary = 64, .hidden = 32, .intermediate = 48, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 8};
  try {
    Layout::of(ranks, parallel, "parallel", spec, 64, true);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

TEST(Layout, RefusesWhatDoesNotFitTheRanksOrTheModel) {
  EXPECT_EQ(complaint(8, {.tensor = 2, .pipeline = 2}), "none");
  EXPECT_EQ(complaint(8, {.tensor = 4, .pipeline = 2}), "none");  // two ranks a kv head
  EXPECT_THAT(complaint(8, {.tensor = 3}), HasSubstr("parallel.tensor: 3 does not divide the 8 ranks"));
  EXPECT_THAT(complaint(8, {.tensor = 2, .pipeline = 3}),
              HasSubstr("parallel: tensor 2 x pipeline 3 is 6, which does not divide the 8 ranks of this run; these "
                        "would: 1, 2, 4, 8"));
  EXPECT_THAT(complaint(8, {.tensor = 8}), HasSubstr("parallel.tensor: 8 does not divide the model's 4 heads"));
  EXPECT_THAT(complaint(8, {.pipeline = 8}), HasSubstr("parallel.pipeline: 8 ranks for a model of 4 layers"));
  EXPECT_THAT(complaint(4, {.pipeline = 2, .pipeline_cuts = {1, 2}}),
              HasSubstr("parallel.pipeline_cuts: has 2 cuts, expected 1 for 2"));
  EXPECT_THAT(complaint(4, {.pipeline = 2, .pipeline_cuts = {4}}),
              HasSubstr("cuts before layer 4, expected ascending layers in [1, 3]"));
  EXPECT_THAT(complaint(3, {.pipeline = 3, .pipeline_cuts = {2, 2}}), HasSubstr("cuts before layer 2"));
}

// A model of which only one size does not split over two ranks.
TEST(Layout, EverySizeThatIsSplitMustDivide) {
  const ModelSpec even{
      .vocabulary = 64, .hidden = 32, .intermediate = 48, .layers = 4, .heads = 6, .kv_heads = 2, .head_dim = 8};
  EXPECT_NO_THROW(Layout::of(2, {.tensor = 2}, "parallel", even, 64, true));
  const std::pair<const char*, std::function<void(ModelSpec&)>> odd[] = {
      {"5 heads, 1 kv heads", [](ModelSpec& spec) { spec.heads = 5, spec.kv_heads = 1; }},
      {"6 heads, 3 kv heads", [](ModelSpec& spec) { spec.kv_heads = 3; }},
      {"intermediate size 49", [](ModelSpec& spec) { spec.intermediate = 49; }},
      {"vocabulary 63", [](ModelSpec& spec) { spec.vocabulary = 63; }},
      {"experts' intermediate size 7", [](ModelSpec& spec) { spec.experts.count = 2, spec.experts.intermediate = 7; }}};
  for (const auto& [named, change] : odd) {
    ModelSpec spec = even;
    change(spec);
    try {
      Layout::of(2, {.tensor = 2}, "parallel", spec, 64, true);
      ADD_FAILURE() << named << " was split over 2 ranks";
    } catch (const BadInput& fault) {
      EXPECT_THAT(fault.what(), testing::AllOf(HasSubstr("parallel.tensor: 2 does not divide"), HasSubstr(named)));
    }
  }
}

TEST(Layout, TokensAreSharedAmongSeveralTensorRanksOnly) {
  const ModelSpec spec{
      .vocabulary = 64, .hidden = 32, .intermediate = 48, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 8};
  EXPECT_TRUE(Layout::of(4, {.tensor = 2, .sequence = true}, "parallel", spec, 64, true).shape.sequence);
  EXPECT_FALSE(Layout::of(4, {.tensor = 2}, "parallel", spec, 64, true).shape.sequence);
  EXPECT_FALSE(Layout::of(4, {.sequence = true}, "parallel", spec, 64, true).shape.sequence);
}

TEST(Layout, CutsWhereItIsTold) {
  const ModelSpec spec{
      .vocabulary = 64, .hidden = 32, .intermediate = 48, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 8};
  const Layout layout = Layout::of(2, {.pipeline = 2, .pipeline_cuts = {3}}, "parallel", spec, 64, true);
  EXPECT_THAT(layout.layers, testing::ElementsAre(LayerRange{0, 3}, LayerRange{3, 4}));
}

TEST(Layout, TheHeadCountsWhereLogitsAreMade) {
  const ModelSpec spec{
      .vocabulary = 4096, .hidden = 32, .intermediate = 48, .layers = 24, .heads = 4, .kv_heads = 2, .head_dim = 8};
  EXPECT_THAT(counts(Layout::of(2, {.pipeline = 2}, "parallel", spec, 64, false).layers), testing::ElementsAre(12, 12));
  EXPECT_THAT(counts(Layout::of(2, {.pipeline = 2}, "parallel", spec, 64, true).layers),
              testing::ElementsAre(12 + std::lround(head_cost(spec) / layer_cost(spec, 0, 64) / 2), testing::_));
}

TEST(RankMap, NamesEveryRanksPlace) {
  EXPECT_EQ(rank_map({.data = 2, .pipeline = 2, .tensor = 1}, {{0, 3}, {3, 4}}),
            "rank 0: data 0, pipeline 0 (layers 0-2), tensor 0\n"
            "rank 1: data 0, pipeline 1 (layers 3-3), tensor 0\n"
            "rank 2: data 1, pipeline 0 (layers 0-2), tensor 0\n"
            "rank 3: data 1, pipeline 1 (layers 3-3), tensor 0");
}

}  // namespace
}  // namespace flashmorph
