#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "core/base/bad_input.h"
#include "core/select/beam.h"
#include "core/select/by_gates.h"
#include "core/select/halo.h"
#include "core/select/measured_layers.h"
#include "core/select/set_search.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

bool has(const std::vector<int64_t>& layers, int64_t layer) { return std::ranges::count(layers, layer) > 0; }

// Layers 2 and 5 recall only together; layer 3 is the best one alone, 0 the next.
Judgement judged(const std::vector<int64_t>& kept) {
  double recall = 0.3 * has(kept, 3) + 0.2 * has(kept, 0);
  if (has(kept, 2) && has(kept, 5)) recall += 0.6;
  return {.error = 10.0 - static_cast<double>(kept.size()) - 0.5 * has(kept, 5) - 0.4 * has(kept, 2),
          .divergence = 9.0 - static_cast<double>(kept.empty() ? 0 : kept.front()),
          .recall = recall,
          .perplexity = has(kept, 0) ? 1.0 : 2.0};
}

Pick pick(const std::string& method, const LayerBudget& budget, const SelectSection& settings = {},
          const Judge& judge = judged) {
  const auto without_text = [judge](const std::vector<int64_t>& kept) {
    Judgement judgement = judge(kept);
    judgement.perplexity = 0.0;
    return judgement;
  };
  return selector_named(method).pick(
      {.settings = settings, .budget = budget, .judge = without_text, .judge_with_text = judge});
}

TEST(MeasuredSelectors, SearchAsFarAsTheySay) {
  const LayerBudget two = LayerBudget::of_layers(6, 2);
  EXPECT_THAT(pick("greedy", two).full_layers, ElementsAre(0, 3)) << "it never meets 2 and 5 together";
  EXPECT_THAT(pick("exhaustive", two).full_layers, ElementsAre(2, 5));
  SelectSection settings;
  settings.own.of<BeamSettings>().beam_width = 1;
  EXPECT_THAT(pick("beam", two, settings).full_layers, ElementsAre(0, 3));
  settings.own.of<BeamSettings>().beam_width = 3;  // 5 is the third of the single layers, by its error
  EXPECT_THAT(pick("beam", two, settings).full_layers, ElementsAre(2, 5));
}

TEST(MeasuredSelectors, NoSetIsJudgedTwiceByASearchAndEachWithinTheBudget) {
  const LayerBudget budget{{3, 2, 2, 1, 4, 1}, 5, "bytes", "budget.kv_bytes_per_token"};
  SelectSection settings;
  for (const char* method : {"greedy", "beam", "exhaustive"}) {
    std::set<std::vector<int64_t>> seen;
    const Pick found = pick(method, budget, settings, [&](const std::vector<int64_t>& kept) {
      EXPECT_TRUE(budget.allows(kept));
      EXPECT_TRUE(std::ranges::is_sorted(kept));
      EXPECT_TRUE(seen.insert(kept).second) << method;
      return judged(kept);
    });
    EXPECT_TRUE(seen.contains(found.full_layers));
  }
}

TEST(Polish, ExchangesLayersUntilNoneIsBetter) {
  // 2 or 3 recall the same, as do 0 or 5: without one of them nothing is missed, so ablate would keep 1 and 4.
  const auto pairs = [](const std::vector<int64_t>& kept) {
    return Judgement{.error = 10.0 - 0.5 * has(kept, 5) - 0.4 * has(kept, 2),
                     .recall = 0.3 * (has(kept, 2) || has(kept, 3)) + 0.2 * (has(kept, 0) || has(kept, 5)) +
                               0.05 * has(kept, 1) + 0.04 * has(kept, 4)};
  };
  SelectSection settings;
  const LayerBudget two = LayerBudget::of_layers(6, 2);
  const auto polished = [&](int64_t width, const LayerBudget& budget) {
    settings.own.of<GateSettings>().polish = width;
    return selector_named("flashmorph")
        .pick({.settings = settings, .budget = budget, .gates = {0.5, 0.9, 0.1, 0.4, 0.8, 0.2}, .judge = pairs});
  };
  EXPECT_THAT(polished(0, two).full_layers, ElementsAre(1, 4));
  const Pick found = polished(1, two);
  EXPECT_THAT(found.full_layers, ElementsAre(2, 5));
  ASSERT_EQ(found.exchanges.size(), 2U);
  EXPECT_EQ(found.exchanges[0].in, 2);
  EXPECT_EQ(found.exchanges[0].out, 4);
  EXPECT_EQ(found.exchanges[1].in, 5);
  EXPECT_EQ(found.exchanges[1].out, 1);
  EXPECT_NEAR(found.exchanges[0].before.recall, 0.09, 1e-12);
  EXPECT_NEAR(found.exchanges[1].before.recall, 0.35, 1e-12);
  EXPECT_NEAR(found.exchanges[1].after.recall, 0.5, 1e-12);
  EXPECT_NEAR(found.margin, 0.3, 1e-9) << "of the gates";
  EXPECT_THAT(polished(1, {{1, 1, 9, 1, 1, 9}, 2, "", ""}).full_layers, ElementsAre(0, 3)) << "2 and 5 cost too much";
}

TEST(Polish, TriesMoreLayersWhereFewAreKept) {
  SelectSection settings;
  settings.own.of<GateSettings>().polish = 1;
  const Pick found =
      selector_named("flashmorph")
          .pick({.settings = settings,
                 .budget = LayerBudget::of_layers(6, 1),
                 .gates = {0, 0, 0, 0, 0.9, 0.8},
                 .judge = [](const std::vector<int64_t>& kept) {  // beside another layer 0 helps more; alone 1 does
                   const bool beside = kept.size() > 1;
                   return Judgement{.error = 1.0 * has(kept, 0),
                                    .recall = 0.2 * (beside && has(kept, 0)) + 0.1 * has(kept, 1)};
                 }});
  EXPECT_THAT(found.full_layers, ElementsAre(1));
}

TEST(Polish, StartsFromTheBestOfTheGatesPickUniformAndAblate) {
  SelectSection settings;
  settings.own.of<GateSettings>().polish = 1;
  const auto polished = [&](const Judge& judge) {
    return selector_named("flashmorph")
        .pick({.settings = settings,
               .budget = LayerBudget::of_layers(6, 2),
               .gates = {0.9, 0.2, 0.8, 0.3, 0.1, 0.0},
               .judge = judge});
  };
  const auto told = [](const Pick& pick) {
    std::vector<std::pair<std::string, std::vector<int64_t>>> contenders;
    for (const Contender& one : pick.contenders) contenders.emplace_back(one.method, one.full_layers);
    return contenders;
  };
  using Layers = std::vector<int64_t>;
  const Pick ablate = polished([](const Layers& kept) {
    return Judgement{.error = 1.0, .recall = 0.1 * has(kept, 1) + 0.2 * has(kept, 4) + 0.3 * has(kept, 3)};
  });
  EXPECT_THAT(told(ablate), ElementsAre(testing::Pair("flashmorph", Layers{0, 2}),
                                        testing::Pair("uniform", Layers{1, 4}), testing::Pair("ablate", Layers{3, 4})));
  EXPECT_NEAR(ablate.contenders[1].judgement.recall, 0.3, 1e-12);
  EXPECT_THAT(ablate.full_layers, ElementsAre(3, 4));
  EXPECT_TRUE(ablate.exchanges.empty());
  EXPECT_NEAR(ablate.margin, 0.5, 1e-9) << "of the gates' own pick";

  const Pick uniform = polished([](const Layers& kept) {  // two ways to the same recall: ablate misses neither
    const bool found = (has(kept, 1) && has(kept, 4)) || (has(kept, 0) && has(kept, 2) && has(kept, 5));
    return Judgement{.error = 1.0, .recall = found ? 0.9 : 0.0};
  });
  EXPECT_THAT(uniform.full_layers, ElementsAre(1, 4));
  EXPECT_TRUE(uniform.exchanges.empty());
}

// The coarse judge thinks too much of one set: of a wrong one at the end, or of one on the way there.
TEST(Polish, DecidesOnWhatACloserJudgeSaysOfTheBestFewExchanges) {
  using Layers = std::vector<int64_t>;
  const auto truth = [](const Layers& kept) {
    const std::vector<double> worth = {0.05, 0.1, 0.3, 0.2, 0.0, 0.25};
    double recall = 0.0;
    for (const int64_t layer : kept) recall += worth[static_cast<size_t>(layer)];
    return Judgement{.error = 1.0, .recall = kept.size() > 3 ? 1.0 : recall};  // ablate learns nothing
  };
  SelectSection settings;
  settings.own.of<GateSettings>().polish = 1;
  for (const auto& [overrated, wrong] : {std::pair{Layers{2, 3}, Layers{2, 3}}, {Layers{1, 2}, Layers{1, 2}}}) {
    int64_t asked_closely = 0;
    const auto coarse = [&](const Layers& kept) {
      Judgement judgement = truth(kept);
      if (kept == overrated) judgement.recall += 0.5;
      return judgement;
    };
    const auto polished = [&](const Judge& closely) {
      return selector_named("flashmorph")
          .pick({.settings = settings,
                 .budget = LayerBudget::of_layers(6, 2),
                 .gates = {0.9, 0.8, 0.1, 0.2, 0.3, 0.0},
                 .judge = coarse,
                 .judge_closely = closely});
    };
    EXPECT_EQ(polished({}).full_layers, wrong);
    const Pick found = polished([&](const Layers& kept) {
      ++asked_closely;
      return truth(kept);
    });
    EXPECT_THAT(found.full_layers, ElementsAre(2, 5));
    ASSERT_EQ(found.exchanges.size(), 2U);
    EXPECT_NEAR(found.exchanges[0].before.recall, 0.15, 1e-12);
    EXPECT_NEAR(found.exchanges[0].after.recall, 0.4, 1e-12) << "as the closer judge has it";
    EXPECT_NEAR(found.exchanges[1].before.recall, 0.4, 1e-12);
    EXPECT_NEAR(found.exchanges[1].after.recall, 0.55, 1e-12);
    EXPECT_EQ(asked_closely, 3 + 3 * 4) << "the contenders, and four exchanges of each round";
  }
}

TEST(Polish, ComparesTheContendersByTheCloserJudge) {
  SelectSection settings;
  settings.own.of<GateSettings>().polish = 1;
  const auto all_but = [](const std::vector<int64_t>& best, double recall) {
    return
        [=](const std::vector<int64_t>& kept) { return Judgement{.error = 1.0, .recall = kept == best ? 1 : recall}; };
  };
  const Pick found = selector_named("flashmorph")
                         .pick({.settings = settings,
                                .budget = LayerBudget::of_layers(6, 2),
                                .gates = {0.0, 0.1, 0.8, 0.9, 0.2, 0.0},
                                .judge = all_but({1, 4}, 0.5),
                                .judge_closely = all_but({2, 3}, 0.25)});
  EXPECT_EQ(found.contenders[0].judgement.recall, 1.0);
  EXPECT_EQ(found.contenders[1].judgement.recall, 0.25);
  EXPECT_THAT(found.full_layers, ElementsAre(2, 3));
  EXPECT_TRUE(found.exchanges.empty());
}

TEST(Exhaustive, GoesThroughEverySetThatFillsTheBudget) {
  EXPECT_EQ(filled_sets(LayerBudget::of_layers(12, 3), 1000).size(), 220U);
  const LayerBudget budget{{3, 2, 2}, 4, "", ""};
  EXPECT_THAT(filled_sets(budget, 10), ElementsAre(ElementsAre(0), ElementsAre(1, 2)));
  SelectSection settings;
  EXPECT_NO_THROW(selector_named("exhaustive").check(settings, LayerBudget::of_layers(12, 3)));
  try {
    selector_named("exhaustive").check(settings, LayerBudget::of_layers(28, 7));
    FAIL();
  } catch (const BadInput& fault) {
    EXPECT_THAT(fault.what(), HasSubstr("would judge more than 1000 sets of 28 layers that fill 7 layers; raise "
                                        "stages.select.most_sets"));
  }
}

TEST(Ablate, KeepsTheLayersWhoseLossCostsRecallAndAmongEqualOnesError) {
  const Pick found = pick("ablate", LayerBudget::of_layers(6, 2));
  EXPECT_THAT(found.full_layers, ElementsAre(2, 5)) << "either of them loses both";
  EXPECT_NEAR(found.scores[3], 0.3, 1e-5);
  EXPECT_GT(found.scores[5], found.scores[2]) << "the same recall, more error";
  EXPECT_GT(found.scores[1], 0.0);
  EXPECT_LT(found.scores[1], 1e-5);
}

TEST(KlLs, KeepsTheLayersWhoseFullAttentionAloneDivergesLeast) {
  std::vector<std::vector<int64_t>> asked;
  const Pick found = pick("kl_ls", LayerBudget::of_layers(6, 2), {}, [&](const std::vector<int64_t>& kept) {
    asked.push_back(kept);
    return judged(kept);
  });
  EXPECT_EQ(asked.size(), 6U);
  EXPECT_EQ(asked[1], std::vector<int64_t>{4}) << "the last layer first";
  EXPECT_THAT(found.full_layers, ElementsAre(4, 5));
  EXPECT_THAT(found.scores, ElementsAre(0.0, 1.0, 2.0, 3.0, 4.0, 5.0));
  EXPECT_EQ(found.margin, 1.0);
}

// Scores and pick of Qwen3-1.7B as HALO's authors logged them, sums of three tasks' scores x 10^4.
constexpr const char* kQwen3 =
    R"({"commonsense": [9323, 16643, 17411, 17517, 17269, 17397, 17351, 17259, 17485, 17407, 17167, 17182, 17303, 17347,
                        17352, 17381, 17374, 17175, 17272, 17329, 17123, 17305, 17128, 17325, 17329, 17308, 17337,
                        17381],
        "recall": [19018, 21605, 20812, 21433, 21291, 22297, 20587, 21299, 21774, 20805, 21748, 20649, 20809, 21774,
                   21545, 21943, 21050, 21158, 21261, 20541, 21563, 19592, 21823, 21191, 20808, 20114, 21023, 21649]})";

TEST(Halo, PicksWhatItsAuthorsPublishedFromTheirScores) {
  const test::TemporaryFolder folder;
  SelectSection settings;
  settings.own.of<HaloSettings>().halo_scores = (folder.path() / "scores.json").string();
  std::ofstream(settings.own.of<HaloSettings>().halo_scores) << kQwen3;
  EXPECT_FALSE(selector_named("halo").needs_judge(settings));
  const Pick found = pick("halo", LayerBudget::of_layers(28, 7), settings, {});
  EXPECT_THAT(found.full_layers, ElementsAre(2, 3, 6, 8, 9, 21, 25));
  EXPECT_EQ(found.scores[3], 50.0) << "the layer with the largest C";
  EXPECT_NEAR(found.scores[8], 16.344, 5e-4);
  EXPECT_NEAR(found.scores[0], 0.4, 5e-4);
  EXPECT_EQ(found.scores[5], 0.0) << "the layer with the largest R";
}

TEST(Halo, RefusesAFileThatDoesNotFitTheModel) {
  const test::TemporaryFolder folder;
  SelectSection settings;
  settings.own.of<HaloSettings>().halo_scores = (folder.path() / "scores.json").string();
  const auto complaint = [&](const std::string& content) -> std::string {
    std::ofstream(settings.own.of<HaloSettings>().halo_scores) << content;
    try {
      selector_named("halo").check(settings, LayerBudget::of_layers(2, 1));
    } catch (const BadInput& fault) {
      return fault.what();
    }
    return "none";
  };
  EXPECT_EQ(complaint(R"({"commonsense": [1, 2.5], "recall": [0, 3]})"), "none");
  EXPECT_THAT(complaint(kQwen3), HasSubstr("scores.json: has no list \"commonsense\" of 2 numbers"));
  EXPECT_THAT(complaint(R"({"commonsense": [1, 2]})"), HasSubstr("has no list \"recall\" of 2 numbers"));
  EXPECT_THAT(complaint(R"({"commonsense": [1, 2], "recall": [0, "x"]})"), HasSubstr("\"recall\" holds \"x\""));
  EXPECT_THAT(complaint(R"({"commonsense": [1, 1e300], "recall": [0, 1]})"),
              HasSubstr("expected a number below 1e+09"));
}

TEST(Halo, MeasuresEachLayersLossWhenThereIsNoFile) {
  int64_t asked = 0;
  const Pick found = pick("halo", LayerBudget::of_layers(6, 2), {}, [&](const std::vector<int64_t>& kept) {
    EXPECT_EQ(kept.size(), 5U);
    ++asked;
    return judged(kept);
  });
  EXPECT_EQ(asked, 6);
  // Without 2 or 5 recall falls by 0.6 against the best, without 3 by 0.3, and likelihood by nothing.
  EXPECT_THAT(found.full_layers, ElementsAre(2, 3)) << "scores of 50 for 2, 3 and 5: the lowest layers";
}

}  // namespace
}  // namespace flashmorph
