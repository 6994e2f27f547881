#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/bad_input.h"
#include "core/base/endings.h"
#include "core/model/stored_model.h"
#include "distributed/coordinator/checks.h"
#include "distributed/forecast/cards.h"
#include "distributed/forecast/judging.h"
#include "distributed/forecast/replay.h"
#include "distributed/forecast/run_forecast.h"
#include "distributed/parallel/stage_layouts.h"
#include "launcher/commands.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMeshesTried = 6;  // for room on a card; each is rehearsed

struct ForecastOptions {
  std::string config_file;
  std::vector<std::string> set;
  int64_t ranks = 0;
  std::string card;
  bool json = false;
};

struct Forecast {
  RunConfig config;
  ModelSpec spec;
  int64_t ranks;
  std::optional<Card> card;
  std::vector<StageForecast> stages;
  std::optional<JudgingForecast> judging;

  double seconds_of_judging() const { return seconds_of(*judging, config, spec, ranks, *card); }
};

int64_t largest_peak(const StageForecast& stage) {
  int64_t most = 0;
  for (const RankUse& use : stage.ranks) most = std::max(most, use.peak.total());
  return most;
}

// Stages whose tensors have no room on the card, as faults.
std::vector<Fault> without_room(const std::vector<StageForecast>& stages, const Card& card) {
  std::vector<Fault> faults;
  for (const StageForecast& stage : stages)
    if (!fits(stage, card))
      faults.push_back(
          {"stages." + stage.stage,
           fmt::format("takes {} of tensors on a rank; a {} has {}, of which {} can be filled with them",
                       short_bytes(largest_peak(stage)), card.name,
                       short_bytes(static_cast<int64_t>(card.memory_bytes)),
                       short_bytes(static_cast<int64_t>(kFillable * card.memory_bytes - kBesideTensors)))});
  return faults;
}

// Of the meshes on which the run is sound, the first few on which every stage at fault has room.
std::vector<MeshChoice> with_room(const std::vector<MeshChoice>& meshes, const std::vector<Fault>& faults,
                                  const Forecast& forecast) {
  std::vector<MeshChoice> found;
  for (const MeshChoice& mesh : meshes) {
    if (found.size() == kMeshesTried) break;
    const bool all = std::ranges::all_of(faults, [&](const Fault& fault) {
      const std::string stage = fault.where.substr(fault.where.find('.') + 1);
      return fits(forecast_stage(stage, on_mesh(forecast.config, mesh), forecast.spec, forecast.ranks), *forecast.card);
    });
    if (all) found.push_back(mesh);
  }
  return found;
}

// Why the run cannot be, and on which meshes it could.
struct Refusal {
  std::vector<Fault> faults;
  std::vector<MeshChoice> meshes;
};

void print(const Refusal& refusal, int64_t ranks) {
  std::string text;
  for (const MeshChoice& mesh : refusal.meshes)
    text += fmt::format("{}{} x {}", text.empty() ? "" : ", ", mesh.tensor, mesh.pipeline);
  std::fflush(stdout);
  fmt::print(stderr, "{}\n", BadInput(refusal.faults).what());
  if (text.empty())
    fmt::print(stderr, "no mesh of {} ranks for all stages would do as the config is otherwise\n", ranks);
  else
    fmt::print(stderr, "meshes of {} ranks for all stages that would do, tensor x pipeline: {}\n", ranks, text);
}

void add_to(ordered_json& answer, const Refusal& refusal) {
  answer["refused"] = ordered_json::array();
  answer["meshes"] = ordered_json::array();
  for (const Fault& fault : refusal.faults) answer["refused"].push_back({{"where", fault.where}, {"what", fault.what}});
  for (const MeshChoice& mesh : refusal.meshes)
    answer["meshes"].push_back({{"tensor", mesh.tensor}, {"pipeline", mesh.pipeline}});
}

// Groups of more than one rank, in the order that a reader expects.
std::vector<std::string> groups_of(const StageForecast& stage) {
  const MeshShape& mesh = stage.layout.shape;
  std::vector<std::string> groups;
  if (mesh.tensor > 1) groups.push_back("tensor");
  if (mesh.pipeline > 1) groups.push_back("pipeline");
  if (mesh.data > 1) groups.push_back("data");
  return groups;
}

double bytes_through(const std::string& group, const RankUse& use) {
  double bytes = 0.0;
  for (const auto& [place, sent] : use.traffic)
    if (place.first == group) bytes += sent.bytes;
  return bytes;
}

std::string short_flop(double flop) {
  for (const auto& [unit, size] : {std::pair("P", 1e15), std::pair("T", 1e12), std::pair("G", 1e9)})
    if (flop >= size) return fmt::format("{:.2f} {}", flop / size, unit);
  return fmt::format("{:.0f} M", flop / 1e6);
}

TextTable table_of(const StageForecast& stage) {
  TextTable table(1);
  table[0] = {"  layers", "parameters"};
  for (size_t kind = 0; kind < kMemoryKinds; ++kind) table[0].push_back(name_of(static_cast<MemoryKind>(kind)));
  for (const char* column : {"peak", "FLOP"}) table[0].push_back(column);
  for (const std::string& group : groups_of(stage)) table[0].push_back("by " + group);
  for (const RankUse& use : stage.ranks) {
    int64_t parameters = 0;
    for (const auto& [kind, count] : use.parameters) parameters += count;
    std::vector<std::string> row = {fmt::format("  {}-{}", use.layers.first, use.layers.last - 1),
                                    short_count(parameters)};
    for (const int64_t bytes : use.peak.bytes) row.push_back(short_bytes(bytes));
    row.push_back(short_bytes(use.peak.total()));
    row.push_back(short_flop(use.flop));
    for (const std::string& group : groups_of(stage))
      row.push_back(short_bytes(static_cast<int64_t>(bytes_through(group, use))));
    table.push_back(row);
  }
  return table;
}

std::string short_seconds(double seconds) {
  return seconds < 1.0 ? fmt::format("{:.0f} ms", 1e3 * seconds) : fmt::format("{:.2f} s", seconds);
}

// Of a pipeline's step, where cuts and micro-batches show.
std::string waiting_text(const StepTime& step) {
  if (step.waits.size() == 1) return "";
  std::vector<std::string> shares;
  for (const double wait : step.waits) shares.push_back(fmt::format("{:.0f} %", 100.0 * wait / step.seconds));
  return fmt::format("; the pipeline's ranks wait for each other for {} of it", fmt::join(shares, ", "));
}

// What comes between select and the hybrids.
void print_judging(const Forecast& forecast) {
  const JudgingForecast& judging = *forecast.judging;
  const std::string finalists =
      judging.finalists > 0 ? fmt::format(", {} for those that decide", judging.finalists) : "";
  fmt::print("\ndiscretize {}\n          {} sets of layers judged at least, on {} samples of {} tokens{}\n",
             mesh_text(judging.layout), judging.sets, judging.samples,
             fmt::join(forecast.config.stages.evaluate.lengths, ", "), finalists);
  if (forecast.card)
    fmt::print("  {}: about {} at least\n", forecast.card->name, short_time(forecast.seconds_of_judging()));
}

void print(const Forecast& forecast) {
  fmt::print(
      "{} on {} ranks, {}. What a rank of each range of layers would hold when it is fullest, compute and move,\n"
      "a step; estimated by going through a step without values. Nothing was run.\n",
      forecast.config.model.path, forecast.ranks, forecast.config.device.dtype);
  double seconds = 0.0, flop = 0.0;  // of training; the ranks' mean
  bool picked = !forecast.judging;
  for (const StageForecast& stage : forecast.stages) {
    if (!picked && stage.stage != "align" && stage.stage != "select") {
      print_judging(forecast);
      picked = true;
    }
    fmt::print("\n{:<10}{}\n", stage.stage, mesh_text(stage.layout));
    if (stage.steps > 0)
      fmt::print("          {} steps; of a step, {} micro-batches of {} x {} tokens for each data rank\n", stage.steps,
                 stage.shape.micro_batches, stage.shape.sequences, stage.shape.length);
    else
      fmt::print("          a batch of {} samples of {} tokens\n", stage.shape.sequences, stage.shape.length);
    fmt::print("{}", aligned(table_of(stage)));
    if (!forecast.card || stage.steps == 0) continue;
    const StepTime step = time_of_step(stage, *forecast.card);
    const double all_steps = static_cast<double>(stage.steps) * step.seconds;
    fmt::print("  {}: about {} a step, {} in all{}\n", forecast.card->name, short_seconds(step.seconds),
               short_time(all_steps), waiting_text(step));
    seconds += all_steps;
    for (const RankUse& use : stage.ranks)
      flop += static_cast<double>(stage.steps) * use.flop / static_cast<double>(stage.ranks.size());
  }
  if (seconds > 0.0)
    fmt::print("\n{}: about {} of training, at {:.0f} % of the card's peak\n", forecast.card->name, short_time(seconds),
               100.0 * flop / (seconds * forecast.card->flops(dtype_of(forecast.config.device))));
}

ordered_json json_of(const RankUse& use) {
  ordered_json rank = {{"layers", {use.layers.first, use.layers.last - 1}},
                       {"parameters", ordered_json::object()},
                       {"bytes", ordered_json::object()},
                       {"peak_bytes", use.peak.total()},
                       {"flop", use.flop},
                       {"traffic", ordered_json::array()}};
  for (const auto& [kind, count] : use.parameters) rank["parameters"][name_of(kind)] = count;
  for (size_t kind = 0; kind < kMemoryKinds; ++kind)
    rank["bytes"][name_of(static_cast<MemoryKind>(kind))] = use.peak.bytes[kind];
  for (const auto& [place, sent] : use.traffic)
    rank["traffic"].push_back(
        {{"group", place.first}, {"operation", place.second}, {"calls", sent.calls}, {"bytes", sent.bytes}});
  return rank;
}

ordered_json json_of(const Forecast& forecast) {
  ordered_json answer = {{"model", forecast.config.model.path},
                         {"ranks", forecast.ranks},
                         {"dtype", forecast.config.device.dtype},
                         {"stages", ordered_json::array()}};
  for (const StageForecast& stage : forecast.stages) {
    const MeshShape& mesh = stage.layout.shape;
    ordered_json told = {{"stage", stage.stage},
                         {"data", mesh.data},
                         {"pipeline", mesh.pipeline},
                         {"tensor", mesh.tensor},
                         {"steps", stage.steps},
                         {"micro_batches", stage.shape.micro_batches},
                         {"sequences", stage.shape.sequences},
                         {"length", stage.shape.length},
                         {"by_pipeline_rank", ordered_json::array()}};
    for (const RankUse& use : stage.ranks) told["by_pipeline_rank"].push_back(json_of(use));
    if (forecast.card && stage.steps > 0) {
      const StepTime step = time_of_step(stage, *forecast.card);
      told["seconds_a_step"] = step.seconds;
      for (size_t r = 0; r < step.waits.size(); ++r) told["by_pipeline_rank"][r]["seconds_waited"] = step.waits[r];
    }
    answer["stages"].push_back(told);
  }
  if (const auto& judging = forecast.judging) {
    answer["judging"] = {
        {"sets_at_least", judging->sets}, {"samples", judging->samples}, {"finalist_samples", judging->finalists}};
    if (forecast.card) answer["judging"]["seconds_at_least"] = forecast.seconds_of_judging();
  }
  if (forecast.card) answer["card"] = forecast.card->name;
  return answer;
}

// Nothing to refuse: no faults. Fills in the stages when the settings are sound.
Refusal examine(Forecast& forecast) {
  try {
    check_settings(forecast.config, forecast.spec, forecast.ranks);
  } catch (const BadInput& unsound) {
    return {unsound.faults(), meshes_that_would_do(forecast.config, forecast.spec, forecast.ranks)};
  }
  forecast.stages = forecast_run(forecast.config, forecast.spec, forecast.ranks);
  forecast.judging = forecast_judging(forecast.config, forecast.spec, forecast.ranks);
  if (!forecast.card) return {};
  const std::vector<Fault> faults = without_room(forecast.stages, *forecast.card);
  if (faults.empty()) return {};
  return {faults, with_room(meshes_that_would_do(forecast.config, forecast.spec, forecast.ranks), faults, forecast)};
}

int make_forecast(const ForecastOptions& options) {
  at::set_num_threads(1);  // there are no values: others would only be waited for
  Forecast forecast{.config = RunConfig::from_file(options.config_file, options.set),
                    .spec = {},
                    .ranks = options.ranks,
                    .card = {},
                    .stages = {},
                    .judging = {}};
  forecast.spec = StoredModel::spec_of(forecast.config.model.path);
  if (!options.card.empty()) forecast.card = card_named(options.card);
  if (forecast.card && forecast.card->float8_flops == 0.0 && forecast.config.device.frozen_dtype == "fp8")
    throw BadInput("device.frozen_dtype", "is fp8, and " + forecast.card->name + " has no such products; use same");
  const Refusal refusal = examine(forecast);
  if (options.json) {
    ordered_json answer = json_of(forecast);
    if (!refusal.faults.empty()) add_to(answer, refusal);
    fmt::print("{}\n", answer.dump(1));
  } else {
    if (!forecast.stages.empty()) print(forecast);
    if (!refusal.faults.empty()) print(refusal, forecast.ranks);
  }
  return refusal.faults.empty() ? 0 : kBadInput;
}

}  // namespace

CommandWork plan_command(CLI::App& app) {
  auto options = std::make_shared<ForecastOptions>();
  app.add_option("config", options->config_file,
                 "the run, as YAML; of its model only config.json and the tensors' names are read, of its data nothing")
      ->required();
  app.add_option("--np", options->ranks, "ranks, as mpirun -np")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  app.add_option("--card", options->card,
                 "estimate times on such cards, one a rank, and whether it has room: " + card_names());
  add_set_option(app, options->set);
  app.add_flag("--json", options->json, "for programs");
  return [options] { return make_forecast(*options); };
}

}  // namespace flashmorph
