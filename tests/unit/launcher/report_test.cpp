#include "launcher/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "distributed/forecast/run_forecast.h"

namespace flashmorph {
namespace {

nlohmann::json data_of(const RunRecord& record) {
  const std::string page = report_page(record), open = "id=\"run\">";
  const size_t first = page.find(open) + open.size();
  return nlohmann::json::parse(page.substr(first, page.find("</script>", first) - first));
}

RunRecord quickstart() {
  RunRecord record;
  record.config = RunConfig::from_file("configs/quickstart.yaml", {});
  const std::vector<std::pair<const char*, std::vector<int64_t>>> plans = {{"flashmorph", {2, 5, 8}},
                                                                           {"all_linear", {}}};
  for (const auto& [name, layers] : plans) {
    proto::HybridPlan& plan = *record.plans.add_plans();
    plan.set_name(name);
    plan.mutable_full_layers()->Add(layers.begin(), layers.end());
  }
  for (const std::string stage :
       {"align", "select", "discretize", "distill flashmorph", "distill all_linear", "evaluate teacher"}) {
    proto::StageResult& done = *record.state.add_finished();
    done.set_stage(stage);
    if (const TrainingSection* section = record.config.stages.training(stage.substr(0, stage.find(' '))))
      done.set_tokens(section->steps() * section->batch_tokens);
  }
  return record;
}

TEST(Report, AStagesOperationsAreThoseOfThePlan) {
  const RunRecord record = quickstart();
  const auto stages = data_of(record)["stages"];
  ASSERT_EQ(stages.size(), 6U);
  const auto planned = [&](const std::string& stage) {
    const ModelSpec spec = ModelSpec::open(record.config.model.path);
    const StageForecast plan = forecast_stage(stage, on_mesh(record.config, {1, 1}), spec, 1);
    return static_cast<double>(plan.steps) * plan.ranks[0].flop;
  };
  EXPECT_DOUBLE_EQ(stages[0]["flop"].get<double>(), planned("align"));
  EXPECT_DOUBLE_EQ(stages[1]["flop"].get<double>(), planned("select"));
  EXPECT_DOUBLE_EQ(stages[3]["flop"].get<double>(), planned("distill"))
      << "three layers cost the same wherever they are";
  EXPECT_NE(stages[4]["flop"].get<double>(), planned("distill")) << "no layer with full attention";
  EXPECT_FALSE(stages[2].contains("flop"));
  EXPECT_FALSE(stages[5].contains("flop"));
}

TEST(Report, HoldsThePickOfEveryBudget) {
  RunRecord record = quickstart();
  proto::FrontierPoint& point = *record.plans.add_frontier();
  point.add_full_layers(6);
  point.set_error(0.25);
  const auto frontier = data_of(record)["frontier"];
  ASSERT_EQ(frontier.size(), 1U);
  EXPECT_EQ(frontier[0]["error"], 0.25);
  EXPECT_EQ(frontier[0]["full_layers"], nlohmann::json({"6"}));
}

TEST(Report, SaysWhatEachStageCost) {
  RunRecord record = quickstart();
  record.state.mutable_finished()->DeleteSubrange(2, 4);
  record.config.device.kind = "cuda";
  record.config.device.dtype = "bfloat16";
  record.config.report.price_per_gpu_hour = 2.5;
  record.events.push_back(
      {{"event", "device"}, {"detail", "NVIDIA H100 80GB HBM3, 4 ranks to 4 cards of a host: NCCL"}});
  record.state.mutable_finished(0)->set_ranks(4);
  record.state.mutable_finished(0)->set_seconds(1800.0);
  const auto stages = data_of(record)["stages"];
  EXPECT_DOUBLE_EQ(stages[0]["rank_hours"].get<double>(), 2.0);
  EXPECT_DOUBLE_EQ(stages[0]["price"].get<double>(), 5.0);
  EXPECT_DOUBLE_EQ(stages[0]["of_peak"].get<double>(), stages[0]["flop"].get<double>() / (1800.0 * 4 * 989e12));
  EXPECT_FALSE(stages[1].contains("rank_hours")) << "of an older program, that did not count its ranks";
  record.events.push_back(
      {{"event", "stage_cost"}, {"stage", "align"}, {"flop", 7.0}, {"tokens", stages[0]["tokens"]}});
  const double whole = stages[1]["flop"].get<double>();
  record.state.mutable_finished(1)->set_tokens(record.state.finished(1).tokens() / 4);
  const auto again = data_of(record)["stages"];
  EXPECT_NEAR(again[1]["flop"].get<double>(), whole / 4, 1e-9 * whole) << "select may stop early";
  EXPECT_EQ(again[0]["flop"], 7.0) << "what the journal has is not counted anew";
}

TEST(Report, IsWrittenWhereTheModelIsNot) {
  RunRecord record = quickstart();
  record.config.model.path = "tests/data/nothing";
  for (const auto& stage : data_of(record)["stages"]) EXPECT_FALSE(stage.contains("flop"));
}

}  // namespace
}  // namespace flashmorph
