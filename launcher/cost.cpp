#include "launcher/cost.h"

#include <algorithm>
#include <cctype>

#include "core/base/bad_input.h"
#include "core/model/stored_model.h"
#include "distributed/forecast/cards.h"
#include "distributed/forecast/run_forecast.h"
#include "launcher/journal.h"
#include "launcher/metrics.h"

namespace flashmorph {
namespace {

// The model may have been moved since, or the report be made elsewhere.
std::optional<ModelSpec> model_of(const RunRecord& record) {
  try {
    return StoredModel::spec_of(record.config.model.path);
  } catch (const BadInput&) {
    return std::nullopt;
  }
}

FullLayers full_layers_of(const std::string& plan, const proto::PlanSet& plans) {
  for (const proto::HybridPlan& one : plans.plans())
    if (one.name() == plan) return std::vector<int64_t>(one.full_layers().begin(), one.full_layers().end());
  return std::nullopt;
}

// Of the card that the run's last start named, in operations a second; none for a card that is not known, or a CPU.
std::optional<double> peak_of(const RunRecord& record) {
  if (record.config.device.kind != "cuda") return std::nullopt;
  std::string device;
  for (const nlohmann::json& event : record.events)
    if (event.value("event", "") == "device") device = event.value("detail", "");
  std::ranges::transform(device, device.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const Card& card : known_cards())
    if (device.find(card.name) != std::string::npos)
      return record.config.device.dtype == "bfloat16" ? card.bfloat16_flops : card.float32_flops;
  return std::nullopt;
}

// As the journal has it, or rehearsed again.
std::optional<double> flop_of(const proto::StageResult& done, const RunRecord& record) {
  for (const nlohmann::json& event : record.events)
    if (event.value("event", "") == "stage_cost" && event.value("stage", "") == done.stage() &&
        event.value("tokens", int64_t{0}) == done.tokens() && event.contains("flop"))
      return event["flop"].get<double>();
  const std::optional<ModelSpec> spec = model_of(record);
  if (!spec) return std::nullopt;
  const size_t space = done.stage().find(' ');  // "select", "distill uniform"
  const std::string plan = space == std::string::npos ? "" : done.stage().substr(space + 1);
  return flop_of(done.tokens(), done.stage().substr(0, space), record.config, *spec,
                 full_layers_of(plan, record.plans));
}

}  // namespace

StageUse use_of(const proto::StageResult& done, const RunRecord& record) {
  StageUse use{.stage = done.stage(), .tokens = done.tokens(), .seconds = done.seconds(), .ranks = done.ranks()};
  const double price = record.config.report.price_per_gpu_hour;
  if (price > 0.0 && use.ranks > 0) use.price = price * use.rank_hours();
  if (use.tokens == 0) return use;
  use.flop = flop_of(done, record);
  if (const std::optional<double> peak = peak_of(record); peak && use.flop && use.ranks > 0 && use.seconds > 0.0)
    use.of_peak = *use.flop / (use.seconds * static_cast<double>(use.ranks) * *peak);
  return use;
}

nlohmann::ordered_json json_of(const StageUse& use) {
  nlohmann::ordered_json json = {{"stage", use.stage}, {"tokens", use.tokens}, {"seconds", use.seconds}};
  if (use.ranks > 0) json["rank_hours"] = use.rank_hours();
  if (use.flop) json["flop"] = *use.flop;
  if (use.of_peak) json["of_peak"] = *use.of_peak;
  if (use.price) json["price"] = *use.price;
  return json;
}

// A run does not end for want of what it cost.
void CostRecorder::finished(const std::string& stage, double) try {
  const RunRecord record = RunRecord::outline(folder_);
  for (const proto::StageResult& done : record.state.finished()) {
    if (done.stage() != stage) continue;
    const StageUse use = use_of(done, record);
    journal_.cost(use);
    if (metrics_ != nullptr) metrics_->cost(use);
  }
} catch (const std::exception& error) {
  journal_.warn("what " + stage + " cost cannot be said: " + error.what());
}

}  // namespace flashmorph
