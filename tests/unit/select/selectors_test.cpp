#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "core/base/bad_input.h"
#include "core/select/given.h"
#include "core/select/random.h"
#include "core/select/selector.h"
#include "core/select/uniform.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(UniformLayers, AreTheMiddlesOfEqualStretches) {
  EXPECT_THAT(uniform_layers(12, 3), ElementsAre(2, 6, 10));
  EXPECT_THAT(uniform_layers(9, 3), ElementsAre(1, 4, 7));
  EXPECT_THAT(uniform_layers(28, 4), ElementsAre(3, 10, 17, 24));
  EXPECT_THAT(uniform_layers(5, 1), ElementsAre(2));
  EXPECT_THAT(uniform_layers(4, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(uniform_layers(12, 0), IsEmpty());
}

TEST(UniformLayers, AreSpreadAndInside) {
  for (int64_t layers = 1; layers <= 40; ++layers)
    for (int64_t keep = 1; keep <= layers; ++keep) {
      const std::vector<int64_t> kept = uniform_layers(layers, keep);
      ASSERT_EQ(static_cast<int64_t>(kept.size()), keep);
      EXPECT_GE(kept.front(), 0);
      EXPECT_LT(kept.back(), layers);
      for (size_t i = 1; i < kept.size(); ++i) {
        EXPECT_GE(kept[i] - kept[i - 1], layers / keep) << layers << " " << keep;
        EXPECT_LE(kept[i] - kept[i - 1], (layers + keep - 1) / keep) << layers << " " << keep;
      }
    }
}

TEST(UniformLayers, AreAsManyAsTheBudgetAllows) {
  EXPECT_THAT(uniform_layers({{4, 2, 2, 3}, 4, "", ""}), ElementsAre(2));  // {1, 3} would cost 5
  EXPECT_ANY_THROW(uniform_layers(2, 3));
}

Pick pick(const std::string& method, const LayerBudget& budget, const SelectSection& settings = {},
          std::vector<double> gates = {}) {
  return selector_named(method).pick({.settings = settings, .budget = budget, .gates = gates, .gate_noise = 0.01});
}

TEST(Selectors, PickByTheirRule) {
  const LayerBudget three = LayerBudget::of_layers(12, 3);
  EXPECT_THAT(pick("uniform", three).full_layers, ElementsAre(2, 6, 10));
  EXPECT_THAT(pick("all_linear", three).full_layers, IsEmpty());
  EXPECT_THAT(pick("given", three,
                   [] {
                     SelectSection s;
                     s.own.of<GivenSettings>().layers = {8, 3, 6};
                     return s;
                   }())
                  .full_layers,
              ElementsAre(3, 6, 8));
  const Pick by_gates = pick("flashmorph", LayerBudget::of_layers(4, 2), {}, {0.125, 1.0, 0.5, 0.75});
  EXPECT_THAT(by_gates.full_layers, ElementsAre(1, 3));
  EXPECT_DOUBLE_EQ(by_gates.margin, 0.25);
  EXPECT_EQ(by_gates.noise, 0.01);
  EXPECT_THAT(by_gates.scores, ElementsAre(0.125, 1.0, 0.5, 0.75));
}

TEST(RandomSelector, FollowsFromItsSeedAndReachesEveryLayer) {
  const LayerBudget three = LayerBudget::of_layers(12, 3);
  std::set<int64_t> seen;
  SelectSection settings;
  for (settings.own.of<RandomSettings>().seed = 0; settings.own.of<RandomSettings>().seed < 100;
       ++settings.own.of<RandomSettings>().seed) {
    const std::vector<int64_t> layers = pick("random", three, settings).full_layers;
    EXPECT_EQ(layers, pick("random", three, settings).full_layers);
    ASSERT_EQ(layers.size(), 3U);
    seen.insert(layers.begin(), layers.end());
  }
  EXPECT_EQ(seen.size(), 12U);
}

TEST(Selectors, AreKnownByNameAndSayWhatTheyNeed) {
  EXPECT_THAT(selector_names(), testing::IsSupersetOf({"all_linear", "flashmorph", "given", "random", "uniform"}));
  StagesSection stages;
  EXPECT_THAT(methods_of(stages), ElementsAre("flashmorph", "uniform", "all_linear"));
  EXPECT_TRUE(trains_gates(stages));
  stages.select.method = "uniform";
  EXPECT_THAT(methods_of(stages), ElementsAre("uniform", "all_linear"));
  EXPECT_FALSE(trains_gates(stages));
  stages.evaluate.compare = {"flashmorph"};
  EXPECT_TRUE(trains_gates(stages)) << "to be compared with it";
}

// What `given` says of these settings for 3 of 12 layers.
std::string complaint(const SelectSection& settings) {
  try {
    selector_named("given").check(settings, LayerBudget::of_layers(12, 3));
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

std::string complaint_about_layers(const std::vector<int64_t>& layers) {
  SelectSection settings;
  settings.own.of<GivenSettings>().layers = layers;
  return complaint(settings);
}

TEST(GivenSelector, RefusesWhatIsNoPick) {
  EXPECT_EQ(complaint_about_layers({3, 6, 8}), "none");
  EXPECT_THAT(complaint_about_layers({}), HasSubstr("needs exactly one of"));
  EXPECT_THAT(complaint_about_layers({3, 3}), HasSubstr("stages.select.layers: names a layer twice: 3 3"));
  EXPECT_THAT(complaint_about_layers({3, 12}), HasSubstr("names layers 3 12, expected 0 to 11"));
  EXPECT_THAT(complaint_about_layers({1, 2, 3, 4}),
              HasSubstr("in layers 1 2 3 4, which budget.full_layers of 3 layers does not allow"));
}

TEST(GivenSelector, TakesTheOwnPickOfAnotherRun) {
  const test::TemporaryFolder folder;
  SelectSection settings;
  settings.own.of<GivenSettings>().plan = (folder.path() / "plan.json").string();
  const auto with = [&](const std::string& content) {
    std::ofstream(settings.own.of<GivenSettings>().plan) << content;
    return complaint(settings);
  };
  EXPECT_THAT(complaint(settings), HasSubstr("plan.json"));
  EXPECT_EQ(
      with(R"({"layers": "12", "plans": [{"name": "flashmorph", "full_layers": ["8", "3"]}, {"full_layers": ["1"]}]})"),
      "none");
  EXPECT_THAT(pick("given", LayerBudget::of_layers(12, 3), settings).full_layers, ElementsAre(3, 8));
  EXPECT_THAT(with(R"({"layers": "28", "plans": [{"full_layers": ["3"]}]})"),
              HasSubstr("plan.json: is of a model of 28 layers, expected 12"));
  EXPECT_THAT(with(R"({"layers": 12, "plans": [{"full_layers": ["three"]}]})"),
              HasSubstr("holds \"three\" where a layer's number is expected"));
  EXPECT_THAT(with(R"({"layers": 12, "plans": []})"), HasSubstr("is not the plan.json of a run"));
  EXPECT_THAT(with("{"), HasSubstr("plan.json"));
}

}  // namespace
}  // namespace flashmorph
