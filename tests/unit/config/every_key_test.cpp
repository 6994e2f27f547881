#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "core/config/values.h"
#include "core/mixer/linear_branch.h"
#include "core/select/selector.h"
#include "tests/unit/config/sample.h"

namespace flashmorph {
namespace {

using test::faults_of;
using test::kGood;

// Values to try in place of the default, as YAML; rules between keys forbid some.
std::vector<std::string> others(const std::string& value, const Rule& rule) {
  if (rule.choices.empty()) return {yaml_of(std::string("other")), yaml_of(std::string("off"))};
  std::vector<std::string> texts;
  for (const std::string& choice : rule.choices)
    if (choice != value) texts.push_back(yaml_of(choice));
  return texts;
}
std::vector<std::string> others(int64_t value, const Rule&) {
  return {yaml_of(value * 2 + (value == 0 ? 1024 : 0)), yaml_of(value + 1), yaml_of(value / 2)};
}
std::vector<std::string> others(double value, const Rule&) { return {yaml_of(value == 0 ? 0.25 : value / 2)}; }
std::vector<std::string> others(bool value, const Rule&) { return {yaml_of(!value)}; }
std::vector<std::string> others(const Range&, const Rule&) { return {yaml_of(Range{1, 2})}; }
std::vector<std::string> others(const std::vector<int64_t>&, const Rule&) {
  return {yaml_of(std::vector<int64_t>{256, 128})};
}
std::vector<std::string> others(const std::vector<std::string>&, const Rule& rule) {
  return {yaml_of(std::vector<std::string>{rule.choices.empty() ? "other" : rule.choices.back()})};
}

struct Key {
  std::string path;
  std::vector<std::string> others;
};

struct Walk : KeyVisitor {
  std::vector<Key> found;

  void visit(const std::string& path, Value value, const Rule& rule) override {
    found.push_back({path, std::visit([&](const auto* field) { return others(*field, rule); }, value)});
  }
};

std::vector<Key> all_keys() {
  Walk walk;
  RunConfig::from_yaml(kGood, "run.yaml").keys(walk);
  return walk.found;
}

// What to_yaml wrote: key path to value.
std::map<std::string, std::string> written(const RunConfig& config) {
  std::istringstream lines(config.to_yaml());
  std::vector<std::string> path;
  std::map<std::string, std::string> values;
  for (std::string line; std::getline(lines, line);) {
    const size_t indent = line.find_first_not_of(' '), colon = line.find(':');
    path.resize(indent / 2);
    path.push_back(line.substr(indent, colon - indent));
    std::string key;
    for (const std::string& part : path) key += (key.empty() ? "" : ".") + part;
    if (colon + 1 < line.size()) values[key] = line.substr(colon + 2);
  }
  return values;
}

TEST(EveryKey, IsSetAloneAndWrittenAndReadBack) {
  const auto before = written(RunConfig::from_yaml(kGood, "run.yaml"));
  for (const auto& [path, others] : all_keys()) {
    const bool stands_in = path == "budget.ratio" || path == "budget.kv_bytes_per_token" ||
                           path == "budget.milliseconds" || path == "data.jsonl" || path == "data.tokens";
    if (others.empty() || stands_in) continue;  // tested below
    std::string accepted, faults;
    for (const std::string& other : others) {
      faults = faults_of(kGood, {path + "=" + other});
      if (accepted.empty() && faults == "no fault") accepted = other;
    }
    ASSERT_NE(accepted, "") << path << ": " << faults;
    const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {path + "=" + accepted});
    auto expected = before;
    EXPECT_NE(expected[path], accepted) << path;
    expected[path] = accepted;
    for (const char* stage : {"align", "select", "distill", "finetune", "evaluate"})  // a stage's mesh is the run's
      if (const auto inherited = expected.find("stages." + std::string(stage) + "." + path);
          path.starts_with("parallel.") && inherited != expected.end())
        inherited->second = accepted;
    EXPECT_EQ(written(config), expected) << path;
    EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").to_yaml(), config.to_yaml()) << path;
  }
}

TEST(EveryKey, OfAMixerOrSelectorIsThere) {  // and so these libraries are
  EXPECT_EQ(kinds_of("mixer"), branch_kinds());
  EXPECT_EQ(kinds_of("selector"), selector_names());
  const auto keys = written(RunConfig::from_yaml(kGood, "run.yaml"));
  for (const char* key : {"mixer.decay", "stages.select.gate_penalty", "stages.select.seed"})
    EXPECT_TRUE(keys.contains(key)) << key;
}

TEST(EveryKey, WithOneChoiceTakesIt) {
  for (const std::string entry : {"device.kind=cpu"}) EXPECT_EQ(faults_of(kGood, {entry}), "no fault");
}

TEST(EveryKey, RatioStandsInForFullLayers) {
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {"budget.ratio=3:1", "budget.full_layers=0"});
  EXPECT_EQ(config.budget.ratio, "3:1");
  EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").budget.ratio, "3:1");
}

TEST(EveryKey, OtherBudgetsStandInForFullLayers) {
  for (const std::string other : {"kv_bytes_per_token=512", "milliseconds=2.5"}) {
    const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {"budget." + other, "budget.full_layers=0"});
    EXPECT_EQ(config.budget.kv_bytes_per_token + config.budget.milliseconds, other[0] == 'k' ? 512 : 2.5);
    EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").to_yaml(), config.to_yaml());
    EXPECT_THAT(faults_of(kGood, {"budget." + other}), testing::HasSubstr("needs exactly one of"));
  }
}

TEST(EveryKey, AStagesMeshIsTheRunsUnlessItSaysOtherwise) {
  const RunConfig config =
      RunConfig::from_yaml(kGood, "run.yaml",
                           {"parallel.tensor=2", "parallel.pipeline=4", "parallel.pipeline_cuts=[3, 6, 9]",
                            "stages.select.parallel.tensor=4", "stages.distill.parallel.pipeline_cuts=[]"});
  EXPECT_EQ(config.stages.align.parallel, config.parallel);
  EXPECT_EQ(config.stages.select.parallel.tensor, 4);
  EXPECT_EQ(config.stages.select.parallel.pipeline, 4);
  EXPECT_TRUE(config.stages.distill.parallel.pipeline_cuts.empty());
  EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").to_yaml(), config.to_yaml());
}

TEST(EveryKey, JsonLinesOrTokensStandInForText) {
  for (const std::string key : {"jsonl", "tokens"}) {
    const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {"data={" + key + ": corpus}"});
    EXPECT_EQ(key == "jsonl" ? config.data.jsonl : config.data.tokens, "corpus");
    EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").to_yaml(), config.to_yaml());
    EXPECT_THAT(faults_of(kGood, {"data." + key + "=corpus"}),
                testing::HasSubstr("needs exactly one of text, jsonl, tokens and sources"));
  }
}

TEST(EveryKey, SourcesStandInForTextToo) {
  const std::string data = "data={sources: [{path: a}, {path: b, weight: 3}], held_out: 0.2}";
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {data});
  ASSERT_EQ(config.data.sources.size(), 2U);
  EXPECT_EQ(config.data.sources[0].path, "a");
  EXPECT_EQ(config.data.sources[0].weight, 1.0);
  EXPECT_EQ(config.data.sources[1].path, "b");
  EXPECT_EQ(config.data.sources[1].weight, 3.0);
  EXPECT_EQ(config.data.held_out, 0.2);
  const std::string text = config.to_yaml();
  EXPECT_EQ(RunConfig::from_yaml(text, "run.yaml").to_yaml(), text);
  EXPECT_EQ(RunConfig::from_yaml(text, "run.yaml", {"data.sources.1.weight=4"}).data.sources[1].weight, 4.0);
  EXPECT_THAT(yaml_reference(), testing::HasSubstr("\n| `data.sources.0.weight` | `1` | "));
  EXPECT_THAT(faults_of(kGood, {"data.sources=[{path: a}]"}), testing::HasSubstr("needs exactly one of"));
}

TEST(EveryKey, RefusesAMapAndNamesItself) {
  for (const Key& key : all_keys())
    EXPECT_THAT(faults_of(kGood, {key.path + "={no: map}"}),
                testing::HasSubstr(key.path + " (--set): is a map, expected"));
}

TEST(EveryKey, HasARowInTheReference) {
  const std::string page = yaml_reference();
  for (const Key& key : all_keys()) EXPECT_THAT(page, testing::HasSubstr("\n| `" + key.path + "` | "));
  for (const char* cell : {"one of: alibi, retnet, layered |", "in [1, 10] |", "at least 0 |", "| required |"})
    EXPECT_THAT(page, testing::HasSubstr(cell));
}

}  // namespace
}  // namespace flashmorph
