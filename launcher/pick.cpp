#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/model/stored_model.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/measure/measures.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/run/run_folder.h"
#include "distributed/run/run_record.h"
#include "distributed/stages/gate_history.h"
#include "launcher/commands.h"

// The layers that a run's gates keep within another budget than its own: nothing is trained again.

namespace flashmorph {
namespace {

struct Options {
  std::string run;
  std::string budget;
  std::string plan;
  bool json = false;
};

template <class Message>
Message read_result(const std::filesystem::path& file, const std::string& needed) {
  if (!std::filesystem::exists(file)) throw BadInput(file.string(), "is not there: " + needed);
  Message message;
  read_message(file, message);
  return message;
}

proto::GateSnapshot gates_of(const RunFolder& files, int64_t layers) {
  const auto gates = read_result<proto::GateSnapshot>(
      files.gates_file(), "the run has not finished select, or has no method that trains gates");
  const auto is_gate = [](double value) { return value >= 0.0 && value <= 1.0; };
  for (const proto::GateStep& step : gates.history())
    if (step.alpha_size() != layers || !std::ranges::all_of(step.alpha(), is_gate))
      throw BadInput(files.gates_file().string(),
                     fmt::format("step {} does not hold {} gates from 0 to 1", step.step(), layers));
  if (gates.history().empty()) throw BadInput(files.gates_file().string(), "holds no step of select");
  return gates;
}

// The run's config with the budget that was asked for, checked as any other.
RunConfig with_budget(const RunRecord& record, const std::string& budget) {
  const size_t equals = budget.find('=');
  if (equals == std::string::npos)
    throw BadInput("--budget",
                   fmt::format("is '{}', expected a key of budget and its value, e.g. full_layers=4", budget));
  const std::string section = fmt::format("budget={{{}: \"{}\", length: {}}}", budget.substr(0, equals),
                                          budget.substr(equals + 1), record.config.budget.length);
  return RunConfig::from_yaml(record.config_text, record.folder / "run.yaml", {section});
}

LayerBudget asked_budget(const RunConfig& config, const RunFolder& files, const ModelSpec& spec) {
  LayerLatency latency;
  if (config.budget.milliseconds > 0.0)
    latency = numbers_of(read_result<proto::LayerLatency>(
        files.latency_file(), "only a run whose own budget is in milliseconds has measured its layers"));
  return layer_budget(config.budget, spec, static_cast<int64_t>(c10::elementSize(dtype_of(config.device))), latency);
}

proto::PlanSet as_plan(const proto::FrontierPoint& point, const LayerBudget& budget) {
  proto::PlanSet set;
  set.set_layers(budget.layers());
  set.set_budget(fmt::format("{} {}", budget.limit, budget.unit));
  proto::HybridPlan& plan = *set.add_plans();
  plan.set_name("flashmorph");
  *plan.mutable_full_layers() = point.full_layers();
  plan.set_margin(point.margin());
  plan.set_noise(point.noise());
  return set;
}

void print(const proto::FrontierPoint& point, const LayerBudget& budget) {
  fmt::print("full attention in {} of {} layers: {}\n", point.full_layers_size(), budget.layers(),
             fmt::join(point.full_layers(), " "));
  fmt::print("budget {} {}; KV cache {} bytes a token; error {:.4g} when the gates met it\n", budget.limit, budget.unit,
             point.kv_bytes_per_token(), point.error());
  fmt::print("margin {:.4f}, noise {:.4f}{}\n", point.margin(), point.noise(),
             point.margin() > point.noise() ? "" : ": other layers may be as good; more select tokens would tell");
}

void print_json(const proto::FrontierPoint& point, const LayerBudget& budget) {
  const nlohmann::ordered_json answer = {
      {"full_layers", std::vector<int64_t>(point.full_layers().begin(), point.full_layers().end())},
      {"layers", budget.layers()},
      {"budget", budget.limit},
      {"unit", budget.unit},
      {"kv_bytes_per_token", point.kv_bytes_per_token()},
      {"error", point.error()},
      {"margin", point.margin()},
      {"noise", point.noise()}};
  fmt::print("{}\n", answer.dump(1));
}

int pick(const Options& options) {
  const RunRecord record = RunRecord::open(options.run);
  const RunFolder files(record.folder);
  const RunConfig config = with_budget(record, options.budget);
  const ModelSpec spec = StoredModel::spec_of(config.model.path);
  const proto::GateSnapshot gates = gates_of(files, spec.layers);
  const LayerBudget budget = asked_budget(config, files, spec);
  const GateHistory history(gates, config.stages.select, budget);
  const proto::FrontierPoint point =
      history.pick(spec.kv_bytes(static_cast<int64_t>(c10::elementSize(dtype_of(config.device)))));
  options.json ? print_json(point, budget) : print(point, budget);
  if (!options.json && !history.has_met())
    fmt::print("select ended before its gates had come down to this budget: the pick foretells what they would keep\n");
  if (!options.plan.empty()) write_message(options.plan, as_plan(point, budget));
  return 0;
}

}  // namespace

CommandWork pick_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("run", options->run, "a run's folder whose select is finished, e.g. runs/quickstart")->required();
  app.add_option("--budget", options->budget,
                 "full_layers=4, ratio=3:1, kv_bytes_per_token=1536 or milliseconds=2.5, as under budget in the YAML")
      ->type_name("KEY=VALUE")
      ->required();
  app.add_option("--plan", options->plan,
                 "write the pick there, as .json: stages.select.method given takes it as stages.select.plan");
  app.add_flag("--json", options->json, "for programs");
  return [options] { return pick(*options); };
}

}  // namespace flashmorph
