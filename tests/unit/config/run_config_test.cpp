#include "core/config/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

constexpr const char* kGood =
    "model: {path: teacher}\n"
    "budget: {full_layers: 3}\n"
    "data: {text: book.txt}\n"
    "stages:\n"
    "  align: {tokens: 1M}\n"
    "  select: {tokens: 256K}\n";

std::string faults_of(const std::string& yaml, const std::vector<std::string>& set = {}) {
  try {
    RunConfig::from_yaml(yaml, "run.yaml", set);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

TEST(RunConfig, ReadsValuesAndKeepsDefaults) {
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml");
  EXPECT_EQ(config.stages.align.tokens, 1'000'000);
  EXPECT_EQ(config.stages.select.tokens, 256'000);
  EXPECT_EQ(config.stages.select.lr.from, 2e-2);
  EXPECT_EQ(config.stages.distill.tokens, 0);
  EXPECT_EQ(config.mixer.kind, "lightning");
}

TEST(RunConfig, WhatItWritesReadsBackTheSame) {
  const std::string once = RunConfig::from_yaml(kGood, "run.yaml").to_yaml();
  EXPECT_EQ(RunConfig::from_yaml(once, "run.yaml").to_yaml(), once);
}

TEST(RunConfig, EveryWrittenKeyCanBeSet) {
  std::istringstream lines(RunConfig::from_yaml(kGood, "run.yaml").to_yaml());
  std::vector<std::string> path;
  int keys = 0;
  for (std::string line; std::getline(lines, line);) {
    const size_t indent = line.find_first_not_of(' '), colon = line.find(':');
    path.resize(indent / 2);
    path.push_back(line.substr(indent, colon - indent));
    if (colon + 1 == line.size()) continue;
    std::string key;
    for (const std::string& part : path) key += (key.empty() ? "" : ".") + part;
    EXPECT_EQ(faults_of(kGood, {key + "=" + line.substr(colon + 2)}), "no fault") << key;
    EXPECT_THAT(faults_of(kGood, {key + "={no: map}"}), HasSubstr(key + " (--set)")) << key;
    ++keys;
  }
  EXPECT_GT(keys, 60);
}

TEST(RunConfig, OverridesChangeTheConfig) {
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {"stages.distill.lr.from=5e-4", "run.name=other"});
  EXPECT_EQ(config.stages.distill.lr.from, 5e-4);
  EXPECT_EQ(config.run.name, "other");
}

struct BadYaml {
  const char* change;  // appended, or "key=value" through --set when it holds a '='
  const char* expected;
};

class BadConfig : public testing::TestWithParam<BadYaml> {};

TEST_P(BadConfig, NamesKeyPlaceAndExpectation) {
  const auto [change, expected] = GetParam();
  const std::string text = change;
  const bool override = text.find('=') != std::string::npos;
  EXPECT_THAT(override ? faults_of(kGood, {text}) : faults_of(kGood + text), HasSubstr(expected));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadConfig,
    testing::Values(
        BadYaml{"  algin: {tokens: 1}\n", "stages.algin (line 7): no such key; did you mean align?"},
        BadYaml{"  distill: {tokenz: 1}\n", "stages.distill.tokenz (line 7): no such key; did you mean tokens?"},
        BadYaml{"mixr: {kind: lightning}\n", "mixr (line 7): no such key; did you mean mixer?"},
        BadYaml{"zebra: 1\n", "zebra (line 7): no such key; known here: run, model"},
        BadYaml{"budget: {full_layers: 2}\n", "budget (line 7): stands here a second time"},
        BadYaml{"  distill: 5\n", "stages.distill: is '5', expected a map of keys"},
        BadYaml{"device: {dtype: bf16}\n", "device.dtype (line 7): is 'bf16', expected one of: float32, float64"},
        BadYaml{"device: {kind: cuda}\n", "device.kind (line 7): is 'cuda', expected one of: cpu"},
        BadYaml{"device: {threads: 0}\n", "device.threads (line 7): is 0, expected a number in [1, 1024]"},
        BadYaml{"device: {threads: 1.5}\n", "device.threads (line 7): is '1.5', expected a whole number"},
        BadYaml{"parallel: {tensor: two}\n", "parallel.tensor (line 7): is 'two', expected a whole number"},
        BadYaml{"mixer: {kind: gla}\n", "mixer.kind (line 7): is 'gla', expected one of: lightning"},
        BadYaml{"mixer: {decay: slow}\n", "mixer.decay (line 7): is 'slow', expected one of: alibi, retnet, layered"},
        BadYaml{"mixer: {rope: yes}\n", "mixer.rope (line 7): is 'yes', expected true or false"},
        BadYaml{"mixer: {chunk: 0}\n", "mixer.chunk (line 7): is 0, expected a number in [1, 4096]"},
        BadYaml{"run: {name: a/b}\n", "run.name: is 'a/b', expected a plain folder name"},
        BadYaml{"run: {seed: -1}\n", "run.seed (line 7): is -1, expected a number at least 0"},
        BadYaml{"  [oops\n", "run.yaml (line 8): is not YAML"},
        BadYaml{"data.held_out=1.5", "data.held_out (--set): is 1.5, expected a number in [0.001, 0.9]"},
        BadYaml{"budget.full_layers=0", "budget: needs exactly one of full_layers (at least 1) and ratio"},
        BadYaml{"budget.ratio=3:1", "budget: needs exactly one of full_layers"},
        BadYaml{"stages.align.tokens=0", "stages.align.tokens (--set): is 0, expected a number at least 1"},
        BadYaml{"stages.align.data.lengths=[500]", "stages.align.data.lengths: 500 does not divide batch_tokens 8192"},
        BadYaml{"stages.align.data.lengths=[]", "stages.align.data.lengths (--set): is a list, expected a number or a list"},
        BadYaml{"stages.align.micro_batch_tokens=3000", "3000 does not divide batch_tokens 8192"},
        BadYaml{"stages.align.data.passkeys=[8, 4]", "is [8, 4], expected min <= max"},
        BadYaml{"stages.align.data.passkeys=11", "stages.align.data.passkeys (--set): is 11, expected a number in [1, 10]"},
        BadYaml{"stages.align.lr.from=0", "stages.align.lr.from (--set): is 0"},
        BadYaml{"stages.align.beta1=1", "stages.align.beta1 (--set): is 1"},
        BadYaml{"stages.select.clip=1", "stages.select.clip (--set): no such key"},
        BadYaml{"stages.select.data.passkey_share=0.5", "stages.select.data.passkey_share (--set): no such key"},
        BadYaml{"stages.select.method=best", "is 'best', expected one of: flashmorph, uniform"},
        BadYaml{"stages.evaluate.compare=[uniform, uniform]", "names uniform twice"},
        BadYaml{"stages.evaluate.compare=uniform", "expected a list"},
        BadYaml{"stages.evaluate.greedy_samples=99", "is 99, expected at most samples, 32"},
        BadYaml{"=5", "--set =5: expected key=value"}));

TEST(RunConfig, AllFaultsComeAtOnce) {
  const std::string faults = faults_of("budget: {full_layer: 3}\nmodel: {}\n");
  for (const char* part : {"budget.full_layer (line 1)", "model.path: is missing", "data.text: is missing",
                           "stages.align.tokens: is missing", "stages.select.tokens: is missing"})
    EXPECT_THAT(faults, HasSubstr(part));
}

TEST(Budget, ResolvesAgainstTheModel) {
  EXPECT_EQ((BudgetSection{.full_layers = 3, .ratio = ""}.full_layers_of(12)), 3);
  EXPECT_EQ((BudgetSection{.full_layers = 0, .ratio = "3:1"}.full_layers_of(12)), 3);
  EXPECT_THROW((BudgetSection{.full_layers = 12, .ratio = ""}.full_layers_of(12)), BadInput);
  EXPECT_THROW((BudgetSection{.full_layers = 0, .ratio = "three"}.full_layers_of(12)), BadInput);
}

TEST(Configs, TheQuickstartIsValid) { EXPECT_NO_THROW(RunConfig::from_file("configs/quickstart.yaml")); }

TEST(Reference, TheDocumentIsTheOneTheCodeMakes) {
  std::stringstream page;
  page << std::ifstream("docs/yaml.md").rdbuf();
  EXPECT_EQ(page.str(), yaml_reference());
}

}  // namespace
}  // namespace flashmorph
