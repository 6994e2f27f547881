#include "distributed/coordinator/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flashmorph {
namespace {

RunConfig config(const std::string& more, const std::string& budget = "full_layers: 1") {
  return RunConfig::from_yaml("model: {path: teacher}\nbudget: {" + budget + "}\ndata: {text: book.txt}\nstages:\n" +
                                  "  align: {tokens: 1M}\n" + more,
                              "run.yaml");
}

proto::PlanSet plans(const std::vector<std::string>& names) {
  proto::PlanSet set;
  for (const std::string& name : names) {
    set.add_plans()->set_name(name);
    set.mutable_plans()->rbegin()->add_full_layers(set.plans_size());
  }
  return set;
}

// Carries out whatever comes next, until nothing does.
std::vector<std::string> whole_run(const RunConfig& config, const proto::PlanSet& later) {
  std::vector<std::string> names;
  proto::RunState state;
  proto::PlanSet plans;
  for (auto command = next_command(config, state, plans); !command.stage().empty();
       command = next_command(config, state, plans)) {
    names.push_back(name_of(command));
    state.add_finished()->set_stage(names.back());
    if (command.stage() == "discretize") plans = later;
  }
  return names;
}

TEST(Commands, AWholeRunInOrder) {
  EXPECT_THAT(whole_run(config("  select: {tokens: 1M}\n  distill: {tokens: 1M}\n  finetune: {tokens: 1M}\n"),
                        plans({"flashmorph", "uniform"})),
              testing::ElementsAre("align", "select", "discretize", "evaluate teacher",
                                   "evaluate flashmorph after align", "evaluate uniform after align",
                                   "distill flashmorph", "finetune flashmorph", "evaluate flashmorph after finetune",
                                   "distill uniform", "finetune uniform", "evaluate uniform after finetune", "export"));
}

TEST(Commands, PlansThatKeepTheSameLayersAreTrainedOnce) {
  proto::PlanSet agreeing = plans({"flashmorph", "uniform", "greedy"});
  agreeing.mutable_plans(2)->set_full_layers(0, agreeing.plans(0).full_layers(0));
  EXPECT_THAT(
      whole_run(config("  select: {tokens: 1M}\n  distill: {tokens: 1M}\n  export: {enabled: false}\n"), agreeing),
      testing::ElementsAre("align", "select", "discretize", "evaluate teacher", "evaluate flashmorph after align",
                           "evaluate uniform after align", "evaluate greedy after align", "distill flashmorph",
                           "evaluate flashmorph after distill", "distill uniform", "evaluate uniform after distill",
                           "evaluate greedy after distill"));
}

TEST(Commands, WithoutGatesTrainingOrExportTheyAreFew) {
  EXPECT_THAT(
      whole_run(config("  select: {tokens: 1M, method: uniform}\n  export: {enabled: false}\n"), plans({"uniform"})),
      testing::ElementsAre("align", "discretize", "evaluate teacher", "evaluate uniform after align"));
}

TEST(Commands, ABudgetInTimeIsMeasuredFirst) {
  EXPECT_EQ(whole_run(config("  select: {tokens: 1M}\n", "milliseconds: 2"), plans({"flashmorph"})).front(), "latency");
}

TEST(Commands, ARunGoesOnAtTheFirstThatIsNotFinished) {
  const RunConfig run = config("  select: {tokens: 1M}\n  distill: {tokens: 1M}\n");
  proto::RunState state;
  for (const char* done : {"align", "select", "discretize", "evaluate teacher", "evaluate flashmorph after align"})
    state.add_finished()->set_stage(done);
  const proto::StageCommand next = next_command(run, state, plans({"flashmorph"}));
  EXPECT_EQ(next.stage(), "distill");
  EXPECT_EQ(next.model(), "flashmorph");
}

}  // namespace
}  // namespace flashmorph
