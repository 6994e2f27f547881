#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/bad_input.h"
#include "distributed/coordinator/checks.h"
#include "launcher/command_line.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

struct Answer {
  int exit_code;
  std::string out, error;
};

Answer plan(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"flashmorph-dist", "plan"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  const ParsedCommandLine line = parse_command_line(static_cast<int>(argv.size()), argv.data());
  if (!line.command) return {line.exit_code, "", line.message};
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int exit_code = line.command();
  return {exit_code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

std::string text_of(const std::filesystem::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

TEST(Plan, ThePageHoldsWhatTheProgramSays) {
  const Answer quickstart = plan({"configs/quickstart.yaml", "--np", "4"});
  EXPECT_EQ(quickstart.exit_code, 0) << quickstart.error;
  EXPECT_THAT(text_of("docs/plan.md"), HasSubstr("```\n" + quickstart.out + "```"));
  const Answer refused = plan({"configs/quickstart.yaml", "--np", "6", "--set", "parallel.tensor=3"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(text_of("docs/plan.md"), HasSubstr("```\n" + refused.error + "```"));
}

TEST(Plan, RefusesInTheWordsOfARun) {
  const std::vector<std::string> set = {"parallel.tensor=3", "stages.distill.parallel.pipeline=13"};
  const RunConfig config = RunConfig::from_file("configs/quickstart.yaml", set);
  std::string words;
  try {
    check_settings(config, ModelSpec::open(config.model.path), 12);
  } catch (const BadInput& fault) {
    words = fault.what();
  }
  ASSERT_FALSE(words.empty());
  const Answer refused = plan({"configs/quickstart.yaml", "--np", "12", "--set", set[0], "--set", set[1]});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.error, testing::StartsWith(words + "\n"));
  EXPECT_THAT(refused.error, HasSubstr("that would do"));
}

TEST(Plan, ACardWithoutFloat8ProductsIsRefusedForThem) {
  std::string words;
  try {
    plan({"configs/quickstart.yaml", "--np", "4", "--card", "a100", "--set", "device.frozen_dtype=fp8"});
  } catch (const BadInput& fault) {
    words = fault.what();
  }
  testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(words, "device.frozen_dtype: is fp8, and a100 has no such products; use same");
}

TEST(Plan, AnswersProgramsInJson) {
  const auto answer =
      nlohmann::json::parse(plan({"configs/quickstart.yaml", "--np", "4", "--card", "h200", "--json"}).out);
  ASSERT_EQ(answer["stages"].size(), 4U);
  const auto& select = answer["stages"][1];
  EXPECT_EQ(select["stage"], "select");
  EXPECT_EQ(select["tensor"], 2);
  const auto& rank = select["by_pipeline_rank"][0];
  int64_t total = 0;
  for (const auto& [kind, bytes] : rank["bytes"].items()) total += bytes.get<int64_t>();
  EXPECT_EQ(total, rank["peak_bytes"].get<int64_t>());
  EXPECT_GT(select["seconds_a_step"].get<double>(), 0.0);
  const auto refused = nlohmann::json::parse(plan({"configs/quickstart.yaml", "--np", "5", "--json"}).out);
  EXPECT_EQ(refused["refused"][0]["where"], "parallel.tensor");
  EXPECT_EQ(refused["meshes"].dump(), R"([{"pipeline":5,"tensor":1}])");
}

TEST(Plan, SaysWhatHasNoRoomOnACardAndWhereItHas) {
  const Answer answer = plan({"configs/qwen3-8b-8.yaml", "--np", "8", "--card", "h100", "--set",
                              "model.path=tests/data/models/qwen3-8b", "--set", "stages.finetune.parallel.tensor=1",
                              "--set", "stages.finetune.parallel.pipeline=1", "--set", "stages.distill.tokens=0"});
  EXPECT_EQ(answer.exit_code, 2);
  EXPECT_THAT(answer.error, HasSubstr("stages.finetune: takes "));
  EXPECT_THAT(answer.error, HasSubstr("that would do, tensor x pipeline: "));
}

TEST(Plan, NeedsTheNumberOfRanks) { EXPECT_EQ(plan({"configs/quickstart.yaml"}).exit_code, 2); }

// Every config that is named MODEL-RANKS.yaml, on the cards it is meant for.
TEST(Configs, EachPassesItsPlan) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs")) {
    const std::string name = entry.path().stem().string();
    const size_t dash = name.rfind('-');
    if (dash == std::string::npos) continue;
    ++found;
    const Answer answer = plan({entry.path().string(), "--np", name.substr(dash + 1), "--card", "h100", "--set",
                                "model.path=tests/data/models/" + name.substr(0, dash)});
    EXPECT_EQ(answer.exit_code, 0) << name << "\n" << answer.out << answer.error;
  }
  EXPECT_EQ(found, 8);
}

}  // namespace
}  // namespace flashmorph
