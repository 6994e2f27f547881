#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "core/base/clock.h"
#include "core/select/selector.h"
#include "distributed/run/results.h"
#include "distributed/run/run_record.h"
#include "launcher/commands.h"
#include "launcher/cost.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

using nlohmann::ordered_json;

constexpr double kQuietAfter = 60.0;  // seconds without a step

// Its newest one on disk, by the journal; {} when there is none.
ordered_json checkpoint_of(const std::string& stage, const std::string& what, const RunRecord& record) {
  ordered_json newest;
  for (const nlohmann::json& event : record.events)
    if (event.value("event", "") == "saved" && event.value("stage", "") == stage && event.value("what", "") == what)
      newest = {{"step", event.value("step", int64_t{0})}, {"seconds_since", unix_time() - event.value("time", 0.0)}};
  return newest;
}

// The stage that the last line of metrics.jsonl belongs to, with its pace; {} when there is none.
ordered_json current_stage(const RunRecord& record) {
  if (record.steps.empty()) return {};
  const nlohmann::json& last = record.steps.back();
  const auto stage = last.value("stage", ""), what = last.value("what", "");
  const std::vector<nlohmann::json> steps = record.steps_of(stage, what);
  int64_t planned = 0;
  for (const nlohmann::json& event : record.events)
    if (event.value("event", "") == "stage_started" && event.value("stage", "") == stage)
      planned = event.value("steps", planned);
  ordered_json now = {{"stage", stage}, {"what", what}, {"step", last.value("step", int64_t{0})}, {"steps", planned}};
  const double took = last.value("time", 0.0) - steps.front().value("time", 0.0);
  if (steps.size() > 1 && took > 0.0) {
    const auto done = static_cast<double>(steps.size() - 1);
    const auto tokens =
        static_cast<double>(last.value("tokens", int64_t{0}) - steps.front().value("tokens", int64_t{0}));
    if (tokens > 0) now["tokens_per_second"] = tokens / took;
    now["seconds_left"] =
        took / done * static_cast<double>(std::max<int64_t>(0, planned - last.value("step", int64_t{0})));
  }
  now["seconds_since_last_step"] = unix_time() - last.value("time", 0.0);
  if (const ordered_json checkpoint = checkpoint_of(stage, what, record); !checkpoint.empty())
    now["checkpoint"] = checkpoint;
  if (last.contains("loss")) now["loss"] = last["loss"];
  if (last.contains("gates")) {
    now["gates"] = last["gates"];
    now["top_layers"] = last["top_layers"];
  }
  return now;
}

std::string phase(const RunRecord& record, const ordered_json& now) {
  if (record.finished()) return "finished";
  if (now.empty()) return "starting";
  return now["seconds_since_last_step"].get<double>() > kQuietAfter ? "stopped, or very slow" : "running";
}

ordered_json status_of(const RunRecord& record) {
  const ordered_json now = current_stage(record);
  ordered_json status = {{"run", record.config.run.name}, {"phase", phase(record, now)}, {"now", now}};
  status["finished_stages"] = ordered_json::array();
  for (const proto::StageResult& done : record.state.finished())
    status["finished_stages"].push_back(json_of(use_of(done, record)));
  status["plans"] = ordered_json::object();
  for (const proto::HybridPlan& plan : record.plans.plans())
    status["plans"][plan.name()] = std::vector<int64_t>(plan.full_layers().begin(), plan.full_layers().end());
  return status;
}

// Those that decided, beside the plan's layers; before there is a plan those of the last step.
std::string gates_of(const RunRecord& record) {
  for (const proto::HybridPlan& plan : record.plans.plans())
    if (selector_named(plan.name()).needs_gates())
      return "\n" + gate_bars({record.gates.alpha().begin(), record.gates.alpha().end()},
                              {plan.full_layers().begin(), plan.full_layers().end()});
  const std::vector<nlohmann::json> selected = record.steps_of("select");
  if (selected.empty() || !selected.back().contains("gates")) return "";
  return "\n" + gate_bars(selected.back()["gates"].get<std::vector<double>>(),
                          selected.back()["top_layers"].get<std::vector<int64_t>>());
}

void print(const RunRecord& record, const ordered_json& status) {
  fmt::print("{}  {}\n", record.config.run.name, status["phase"].get<std::string>());
  for (const auto& done : status["finished_stages"]) {
    fmt::print("  {:<32} {:>6} tokens  {:>8}", done["stage"].get<std::string>(),
               short_count(done["tokens"].get<int64_t>()), short_time(done["seconds"].get<double>()));
    if (done.contains("rank_hours")) fmt::print("  {:>7.3f} rank-hours", done["rank_hours"].get<double>());
    if (done.contains("flop")) fmt::print("  {:.2e} FLOP", done["flop"].get<double>());
    if (done.contains("of_peak")) fmt::print("  {:.1f} % of peak", 100 * done["of_peak"].get<double>());
    if (done.contains("price")) fmt::print("  costs {:.2f}", done["price"].get<double>());
    fmt::print("\n");
  }
  const ordered_json& now = status["now"];
  if (!record.finished() && !now.empty()) {
    fmt::print("  {} {}: step {} of {}", now["stage"].get<std::string>(), now["what"].get<std::string>(),
               now["step"].get<int64_t>(), now["steps"].get<int64_t>());
    if (now.contains("tokens_per_second")) fmt::print(", {:.0f} tokens/s", now["tokens_per_second"].get<double>());
    if (now.contains("seconds_left")) fmt::print(", {} left", short_time(now["seconds_left"].get<double>()));
    fmt::print(", last step {} ago\n", short_time(now["seconds_since_last_step"].get<double>()));
    if (now.contains("checkpoint"))
      fmt::print("  checkpoint after step {}, {} ago\n", now["checkpoint"]["step"].get<int64_t>(),
                 short_time(now["checkpoint"]["seconds_since"].get<double>()));
  }
  fmt::print("{}", gates_of(record));
  if (record.evaluation.measurements_size() > 0)
    fmt::print("\n{}", aligned(results_table(record.plans, record.evaluation)));
}

}  // namespace

CommandWork status_command(CLI::App& app) {
  struct Options {
    std::string folder;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("run", options->folder, "a run's folder, e.g. runs/quickstart")->required();
  app.add_flag("--json", options->json, "for programs");
  return [options] {
    const RunRecord record = RunRecord::open(options->folder);
    const ordered_json status = status_of(record);
    if (options->json)
      fmt::print("{}\n", status.dump(1));
    else
      print(record, status);
    return 0;
  };
}

}  // namespace flashmorph
