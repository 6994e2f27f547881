#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/select/given.h"
#include "core/select/selector.h"
#include "distributed/checkpoint/messages.h"
#include "launcher/command_line.h"
#include "launcher/cost.h"
#include "launcher/journal.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string told(const char* command, const std::filesystem::path& run, std::vector<const char*> options = {}) {
  const std::string folder = run.string();
  std::vector<const char*> argv = {"flashmorph-dist", command, folder.c_str()};
  argv.insert(argv.end(), options.begin(), options.end());
  const ParsedCommandLine line = parse_command_line(static_cast<int>(argv.size()), argv.data());
  testing::internal::CaptureStdout();
  EXPECT_EQ(line.command(), 0);
  return testing::internal::GetCapturedStdout();
}

std::string status_of(const std::filesystem::path& run, std::vector<const char*> options = {}) {
  return told("status", run, std::move(options));
}

// A run's folder, as far as its configuration.
void start_run(const std::filesystem::path& folder) {
  std::ofstream(folder / "run.yaml") << RunConfig::from_file("configs/quickstart.yaml", {}).to_yaml();
}

TEST(Status, NamesTheNewestCheckpointOfTheStageItIsIn) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  Journal journal((RunFolder(folder.path())));
  journal.started({.stage = "align", .what = "12 linear branches", .steps = 100, .tokens = 1000});
  journal.stepped({.step = 51, .tokens = 510, .loss = 1.0, .learning_rate = 0.1});
  journal.saved(25, 0.1);
  journal.saved(50, 0.1);
  EXPECT_THAT(status_of(folder.path()), HasSubstr("\n  checkpoint after step 50, 0:0"));
  const auto answer = nlohmann::json::parse(status_of(folder.path(), {"--json"}));
  EXPECT_EQ(answer["now"]["checkpoint"]["step"], 50);
  EXPECT_GE(answer["now"]["checkpoint"]["seconds_since"].get<double>(), 0.0);

  journal.started({.stage = "select", .what = "12 gates", .steps = 100, .tokens = 1000});
  journal.stepped({.step = 1, .tokens = 10, .loss = 1.0, .learning_rate = 0.1});
  EXPECT_THAT(status_of(folder.path()), Not(HasSubstr("checkpoint"))) << "of the stage before";
}

TEST(Status, SaysWhatAStageCostAndSoDoesTheJournal) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  const RunFolder files(folder.path());
  proto::RunState state;
  proto::StageResult& done = *state.add_finished();
  done.set_stage("align");
  done.set_tokens(16384);
  done.set_seconds(1800.0);
  done.set_ranks(4);
  write_message(files.state_file(), state);
  EXPECT_THAT(status_of(folder.path()), HasSubstr("align"));
  EXPECT_THAT(status_of(folder.path()), HasSubstr("2.000 rank-hours"));
  EXPECT_THAT(status_of(folder.path()), Not(HasSubstr("costs")));
  Journal journal(files);
  CostRecorder(folder.path(), journal, nullptr).finished("align", 1800.0);
  const nlohmann::json line = RunRecord::open(folder.path()).events.back();
  EXPECT_EQ(line["event"], "stage_cost");
  EXPECT_EQ(line["rank_hours"], 2.0);
  CostRecorder(folder.path() / "nowhere", journal, nullptr).finished("align", 1800.0);
  EXPECT_THAT(RunRecord::open(folder.path()).events.back()["detail"], HasSubstr("what align cost cannot be said"));
  EXPECT_EQ(line["flop"], nlohmann::json::parse(status_of(folder.path(), {"--json"}))["finished_stages"][0]["flop"]);
}

// Gates of the teacher's twelve layers, of which one after the other goes to 0: layer 0 first, layer 11 never.
void end_select(const std::filesystem::path& folder) {
  proto::GateSnapshot gates;
  for (int step = 0; step <= 22; ++step) {
    proto::GateStep& moved = *gates.add_history();
    for (int layer = 0; layer < 12; ++layer) moved.add_alpha(std::clamp((2.0 * layer + 2.0 - step) / 2.0, 0.0, 1.0));
    moved.set_loss(0.5 * step);
  }
  *gates.mutable_alpha() = gates.history(18).alpha();
  write_message(RunFolder(folder).gates_file(), gates);
}

std::string refused(const std::filesystem::path& folder, const char* budget) {
  try {
    told("pick", folder, {"--budget", budget});
  } catch (const BadInput& fault) {
    testing::internal::GetCapturedStdout();
    return fault.what();
  }
  return "";
}

TEST(Pick, TakesAnotherBudgetFromTheGatesAsTheyFell) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  EXPECT_THAT(refused(folder.path(), "full_layers=4"), HasSubstr("the run has not finished select"));
  end_select(folder.path());
  EXPECT_THAT(told("pick", folder.path(), {"--budget", "full_layers=4"}),
              HasSubstr("full attention in 4 of 12 layers: 8 9 10 11\nbudget 4 layers; KV cache "));
  EXPECT_THAT(told("pick", folder.path(), {"--budget", "full_layers=4"}), Not(HasSubstr("select ended before")));
  const auto answer = nlohmann::json::parse(told("pick", folder.path(), {"--budget", "ratio=5:1", "--json"}));
  EXPECT_EQ(answer["full_layers"], (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(answer["error"], 10.0) << "at step 20 all gates below layer 10 are 0";
  const int64_t layer = answer["kv_bytes_per_token"].get<int64_t>() / 2;
  const std::string bytes = "kv_bytes_per_token=" + std::to_string(3 * layer + 1);
  const std::string plan = folder.path() / "other.json";
  EXPECT_THAT(told("pick", folder.path(), {"--budget", bytes.c_str(), "--plan", plan.c_str()}),
              HasSubstr("layers: 9 10 11\nbudget " + std::to_string(3 * layer + 1) + " bytes a token"));
  SelectSection given;
  given.own.of<GivenSettings>().plan = plan;
  EXPECT_THAT(selector_named("given").pick({.settings = given, .budget = LayerBudget::of_layers(12, 3)}).full_layers,
              testing::ElementsAre(9, 10, 11));
}

TEST(Status, MarksThePlansLayersBesideTheGatesThatDecided) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  end_select(folder.path());
  proto::PlanSet plans;
  plans.set_layers(12);
  proto::HybridPlan& plan = *plans.add_plans();
  plan.set_name("flashmorph");
  for (const int64_t layer : {0, 10, 11}) plan.add_full_layers(layer);  // the judge's exchange
  write_message(RunFolder(folder.path()).plan_file(), plans);
  const std::string status = status_of(folder.path());
  EXPECT_THAT(status, HasSubstr("  layer   0  ................................ 0.000  full\n"));
  EXPECT_THAT(status, HasSubstr("  layer   9  ################################ 1.000\n"));
  EXPECT_THAT(status, HasSubstr("  layer  10  ################################ 1.000  full\n"));
}

TEST(Pick, SaysWhenSelectEndedBeforeTheBudget) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  end_select(folder.path());
  proto::GateSnapshot gates;
  read_message(RunFolder(folder.path()).gates_file(), gates);
  gates.mutable_history()->DeleteSubrange(5, gates.history_size() - 5);
  write_message(RunFolder(folder.path()).gates_file(), gates);
  EXPECT_THAT(told("pick", folder.path(), {"--budget", "full_layers=4"}), HasSubstr("select ended before its gates"));
}

TEST(Pick, RefusesWhatItCannotAnswer) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  end_select(folder.path());
  EXPECT_THAT(refused(folder.path(), "4"), HasSubstr("--budget: is '4', expected a key of budget and its value"));
  EXPECT_THAT(refused(folder.path(), "layers=4"), HasSubstr("layers"));
  EXPECT_THAT(refused(folder.path(), "full_layers=12"), HasSubstr("full_layers"));
  EXPECT_THAT(refused(folder.path(), "milliseconds=2"), HasSubstr("has measured its layers"));
  proto::GateSnapshot gates;
  gates.add_history()->add_alpha(0.5);
  write_message(RunFolder(folder.path()).gates_file(), gates);
  EXPECT_THAT(refused(folder.path(), "full_layers=4"), HasSubstr("does not hold 12 gates from 0 to 1"));
}

}  // namespace
}  // namespace flashmorph
