#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/config/run_config.h"
#include "core/config/values.h"

namespace flashmorph {
namespace {

RunConfig with(const std::vector<std::string>& set) {
  return RunConfig::from_yaml(
      "model: {path: m}\nbudget: {full_layers: 3}\ndata: {text: t}\n"
      "stages: {align: {tokens: 16K}, select: {tokens: 8K}}\n",
      "test", set);
}

TEST(Differences, EqualConfigsHaveNone) { EXPECT_EQ(text_of(changed_keys(with({}), with({}))), ""); }

TEST(Differences, AreShownOldToNewWithFullPaths) {
  const std::vector<ChangedKey> changed =
      changed_keys(with({}), with({"stages.align.tokens=32K", "stages.select.lr.from=0.5", "data.text=other"}));
  EXPECT_EQ(text_of(changed),
            "data.text: \"t\" -> \"other\"; stages.align.tokens: 16000 -> 32000; stages.select.lr.from: 0.05 -> 0.5");
}

TEST(Differences, OfListsOfAnotherLengthAreShownToo) {
  const RunConfig one = with({"data={sources: [{path: a}]}"}),
                  two = with({"data={sources: [{path: a}, {path: b, weight: 3}]}"});
  EXPECT_EQ(text_of(changed_keys(one, two)), "data.sources.1.path: none -> \"b\"; data.sources.1.weight: none -> 3");
  EXPECT_EQ(text_of(changed_keys(two, one)), "data.sources.1.path: \"b\" -> none; data.sources.1.weight: 3 -> none");
}

TEST(Differences, ARunMayGoOnWithOtherValuesOfWhatChangesNoResult) {
  const std::vector<std::string> harmless = {"run.name=b",
                                             "run.dir=elsewhere",
                                             "run.time_limit=60",
                                             "device.threads=2",
                                             "mixer.chunk=32",
                                             "metrics.listen=off",
                                             "checkpoint.every=7",
                                             "checkpoint.keep=1",
                                             "health.step=5",
                                             "parallel.tensor=2",
                                             "stages.distill.parallel.zero=true",
                                             "stages.select.parallel.recompute=full"};
  for (const std::string& set : harmless) {
    EXPECT_EQ(result_keys(values_of(with({set}))), result_keys(values_of(with({})))) << set;
    const auto changed = changed_keys(with({}), with({set}));
    EXPECT_FALSE(changed.empty()) << set;
    for (const ChangedKey& change : changed) EXPECT_FALSE(change.changes_result) << set << ": " << change.path;
  }
  for (const std::string set : {"run.seed=2", "device.dtype=float64", "mixer.kind=gla", "budget.full_layers=4",
                                "stages.select.tokens=9K", "stages.evaluate.samples=40"})
    EXPECT_NE(result_keys(values_of(with({set}))), result_keys(values_of(with({})))) << set;
}

}  // namespace
}  // namespace flashmorph
