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
  const std::vector<std::pair<const char*, int64_t>> finished = {{"align", 1000},
                                                                 {"select", 1000},
                                                                 {"discretize", 0},
                                                                 {"distill flashmorph", 1000},
                                                                 {"distill all_linear", 1000},
                                                                 {"evaluate teacher", 0}};
  for (const auto& [stage, tokens] : finished) {
    proto::StageResult& done = *record.state.add_finished();
    done.set_stage(stage);
    done.set_tokens(tokens);
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

TEST(Report, IsWrittenWhereTheModelIsNot) {
  RunRecord record = quickstart();
  record.config.model.path = "tests/data/nothing";
  for (const auto& stage : data_of(record)["stages"]) EXPECT_FALSE(stage.contains("flop"));
}

}  // namespace
}  // namespace flashmorph
