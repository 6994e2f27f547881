#include "core/config/run_config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/config/sample.h"

namespace flashmorph {
namespace {

using test::kGood;

TEST(RunConfig, ReadsValuesAndKeepsDefaults) {
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml");
  EXPECT_EQ(config.stages.align.tokens, 1'000'000);
  EXPECT_EQ(config.stages.select.tokens, 256'000);
  EXPECT_EQ(config.stages.select.lr.from, 5e-2);
  EXPECT_EQ(config.stages.distill.tokens, 0);
  EXPECT_EQ(config.mixer.kind, "lightning");
}

TEST(RunConfig, ATrainingSectionKnowsItsStepsAndMicroBatches) {
  TrainingSection section;
  section.tokens = 8193;
  section.batch_tokens = 4096;
  section.data.lengths = {256, 1024, 512};
  EXPECT_EQ(section.steps(), 3);
  EXPECT_EQ(section.longest(), 1024);
  EXPECT_EQ(section.micro_batch(), 1024);
  section.micro_batch_tokens = 2048;
  EXPECT_EQ(section.micro_batch(), 2048);
}

TEST(RunConfig, TheStagesListTheirTrainingSections) {
  const RunConfig config;
  std::string names;
  for (const auto& [name, section] : config.stages.training()) {
    names += std::string(name) + " ";
    EXPECT_EQ(config.stages.training(name), section);
  }
  EXPECT_EQ(names, "align select distill finetune ");
  EXPECT_EQ(config.stages.training("finetune"), &config.stages.finetune);
  EXPECT_EQ(config.stages.training("evaluate"), nullptr);
}

TEST(RunConfig, WhatItWritesReadsBackTheSame) {
  const std::string once = RunConfig::from_yaml(kGood, "run.yaml").to_yaml();
  EXPECT_EQ(RunConfig::from_yaml(once, "run.yaml").to_yaml(), once);
}

TEST(RunConfig, MergeKeysFillInWhatAMapDoesNotSay) {
  const RunConfig config = RunConfig::from_yaml(
      "model: {path: teacher}\nbudget: {full_layers: 3}\ndata: {text: book.txt}\n"
      "stages:\n"
      "  align: &long {tokens: 1M, warmup_steps: 7, lr: &rate {from: 3e-3, to: 1e-4}, data: &d {lengths: [256], words: "
      "4}}\n"
      "  select: {tokens: 1K, batch_tokens: 512, data: {<<: *d}}\n"
      "  distill: {<<: *long, tokens: 2M}\n"
      "  finetune: {<<: [{clip: 0.5}, *long], lr: {<<: *rate, to: 0}}\n",
      "run.yaml", {"stages.distill.warmup_steps=9"});
  const StagesSection& stages = config.stages;
  EXPECT_EQ(stages.select.data.lengths, std::vector<int64_t>{256});
  EXPECT_EQ(stages.select.data.words.max, 4);
  EXPECT_EQ(stages.distill.tokens, 2'000'000) << "its own word counts";
  EXPECT_EQ(stages.distill.lr.from, 3e-3);
  EXPECT_EQ(stages.distill.warmup_steps, 9) << "--set counts more than a merge";
  EXPECT_EQ(stages.finetune.tokens, 1'000'000);
  EXPECT_EQ(stages.finetune.clip, 0.5);
  EXPECT_EQ(stages.finetune.lr.from, 3e-3);
  EXPECT_EQ(stages.finetune.lr.to, 0.0);
}

TEST(RunConfig, TrueAndFalseAreThoseOfYaml12) {
  for (const char* yes : {"true", "True", "TRUE"})
    EXPECT_TRUE(RunConfig::from_yaml(kGood, "run.yaml", {std::string("parallel.zero=") + yes}).parallel.zero) << yes;
  for (const char* no : {"false", "False", "FALSE"})
    EXPECT_FALSE(RunConfig::from_yaml(kGood, "run.yaml", {std::string("mixer.rope=") + no}).mixer.rope) << no;
}

TEST(RunConfig, PathsMeanWhatTheyMeanInAShell) {
  setenv("HOME", "/home/somebody", 1);
  setenv("FLASHMORPH_TEST_DATA", "/data", 1);
  const RunConfig config = RunConfig::from_yaml(
      kGood, "run.yaml",
      {"run.dir=~/runs", "model.path=${FLASHMORPH_TEST_DATA}/models/${FLASHMORPH_TEST_DATA}x", "data.text=a~b/$c.txt"});
  EXPECT_EQ(config.run.dir, "/home/somebody/runs");
  EXPECT_EQ(config.model.path, "/data/models//datax");
  EXPECT_EQ(config.data.text, "a~b/$c.txt") << "nothing else is special";
  EXPECT_EQ(RunConfig::from_yaml(kGood, "run.yaml", {"run.dir=\"~\""}).run.dir, "/home/somebody");
}

TEST(RunConfig, OverridesChangeTheConfig) {
  const RunConfig config = RunConfig::from_yaml(kGood, "run.yaml", {"stages.distill.lr.from=5e-4", "run.name=other"});
  EXPECT_EQ(config.stages.distill.lr.from, 5e-4);
  EXPECT_EQ(config.run.name, "other");
}

TEST(RunConfig, TheLastOverrideOfAKeyWins) {
  EXPECT_EQ(RunConfig::from_yaml(kGood, "run.yaml", {"run.seed=3", "run.seed=4"}).run.seed, 4);
}

TEST(RunConfig, AnOverrideOfASectionReplacesItAndAKeyInsideStillCounts) {
  const RunConfig config = RunConfig::from_yaml(
      kGood, "run.yaml", {"stages.align={tokens: 2M, warmup_steps: 5}", "stages.align.warmup_steps=7"});
  EXPECT_EQ(config.stages.align.tokens, 2'000'000);
  EXPECT_EQ(config.stages.align.warmup_steps, 7);
}

TEST(RunConfig, AnOverrideLeavesTheOtherUsersOfAnAnchorAlone) {
  const std::string text =
      "model: {path: teacher}\nbudget: {full_layers: 3}\ndata: {text: book.txt}\n"
      "stages:\n  align: {tokens: 1M, data: &d {words: 9}}\n  select: {tokens: 1M}\n  distill: {data: *d}\n";
  const RunConfig config = RunConfig::from_yaml(text, "run.yaml", {"stages.distill.data.words=3"});
  EXPECT_EQ(config.stages.distill.data.words.max, 3);
  EXPECT_EQ(config.stages.align.data.words.max, 9);
}

TEST(RunConfig, SuffixesAreExactPowersOfTen) {
  for (const auto& [text, tokens] : std::vector<std::pair<std::string, int64_t>>{
           {"7", 7}, {"1.005M", 1'005'000}, {"2.3M", 2'300'000}, {"4.35K", 4350}, {"1G", 1'000'000'000}, {"2e3", 2000}})
    EXPECT_EQ(RunConfig::from_yaml(kGood, "run.yaml", {"stages.align.tokens=" + text}).stages.align.tokens, tokens)
        << text;
}

TEST(RunConfig, ARangeIsANumberOrAPairAndLengthsANumberOrAList) {
  const RunConfig config =
      RunConfig::from_yaml(kGood, "run.yaml",
                           {"stages.align.data.words=5", "stages.align.data.passkeys=[2, 6]",
                            "stages.align.data.lengths=256", "stages.distill.data.lengths=[128, 512]"});
  EXPECT_EQ(config.stages.align.data.words.min, 5);
  EXPECT_EQ(config.stages.align.data.words.max, 5);
  EXPECT_EQ(config.stages.align.data.passkeys.min, 2);
  EXPECT_EQ(config.stages.align.data.passkeys.max, 6);
  EXPECT_EQ(config.stages.align.data.lengths, std::vector<int64_t>{256});
  EXPECT_EQ(config.stages.distill.data.lengths, (std::vector<int64_t>{128, 512}));
}

TEST(RunConfig, StagesHaveTheirOwnDefaults) {
  const StagesSection stages = RunConfig::from_yaml(kGood, "run.yaml").stages;
  EXPECT_EQ(stages.align.clip, 1.0);
  EXPECT_EQ(stages.align.beta1, 0.9);
  EXPECT_EQ(stages.align.beta2, 0.95);
  EXPECT_EQ(stages.select.clip, 0.0);
  EXPECT_EQ(stages.select.lr.to, 5e-2);
  EXPECT_EQ(stages.select.data.lengths, std::vector<int64_t>{1024});
  EXPECT_EQ(stages.select.data.passkeys.min, 10);
  EXPECT_EQ(stages.select.data.words.min, 32);
  EXPECT_EQ(stages.select.data.passkey_share, 1.0);
  EXPECT_EQ(stages.distill.lr.from, 1e-4);
  EXPECT_EQ(stages.distill.lr.to, 1e-5);
  EXPECT_EQ(stages.finetune.lr.from, 1e-5);
  EXPECT_EQ(stages.finetune.lr.to, 1e-5);
  EXPECT_EQ(stages.finetune.data.lengths, std::vector<int64_t>{1024});
}

TEST(RunConfig, AnyTextSurvivesWritingAndReading) {
  for (const std::string text :
       {"a b", "q\"uo\\te", "line\nbreak\ttab", "# no: comment", "\xC3\xA9t\xC3\xA9", "true"}) {
    RunConfig config = RunConfig::from_yaml(kGood, "run.yaml");
    config.run.dir = text;
    EXPECT_EQ(RunConfig::from_yaml(config.to_yaml(), "run.yaml").run.dir, text);
  }
}

TEST(RunConfig, FilesThatCannotBeReadAreNamed) {
  const test::TemporaryFolder folder;
  EXPECT_THROW(RunConfig::from_file(folder.path()), BadInput);
  EXPECT_THROW(RunConfig::from_file(folder.path() / "none.yaml"), BadInput);
}

TEST(Budget, ResolvesAgainstTheModel) {
  EXPECT_EQ((BudgetSection{.full_layers = 3, .ratio = ""}.full_layers_of(12)), 3);
  EXPECT_EQ((BudgetSection{.full_layers = 0, .ratio = "3:1"}.full_layers_of(12)), 3);
  EXPECT_EQ((BudgetSection{.full_layers = 0, .ratio = "2:1"}.full_layers_of(28)), 9);
  EXPECT_THROW((BudgetSection{.full_layers = 0, .ratio = "3:1"}.full_layers_of(3)), BadInput);
  EXPECT_THROW((BudgetSection{.full_layers = 0, .ratio = ""}.full_layers_of(12)), BadInput);
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
