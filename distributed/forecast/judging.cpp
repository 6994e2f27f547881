#include "distributed/forecast/judging.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "core/eval/recall.h"
#include "core/select/measured_layers.h"
#include "core/select/selector.h"
#include "distributed/coordinator/plans.h"
#include "distributed/forecast/replay.h"
#include "distributed/measure/judge.h"
#include "distributed/parallel/stage_layouts.h"

namespace flashmorph {
namespace {

// That keep layers all over the model, as trained ones do.
proto::GateSnapshot gates_all_over(int64_t layers) {
  proto::GateSnapshot gates;
  for (int64_t l = 0; l < layers; ++l) gates.add_alpha(std::fmod(static_cast<double>(l) * std::numbers::phi, 1.0));
  return gates;
}

// What one judge does for the sets that it is asked for.
class CountedJudge {
 public:
  CountedJudge(int64_t layers, int64_t between_kept)
      : between_kept_(between_kept), last_(routes_that_keep(all_layers(layers), layers)) {}

  void judge(const std::vector<int64_t>& full_layers) {
    const auto layers = std::ssize(last_);
    const Routes routes = routes_that_keep(full_layers, layers);
    const int64_t differ = layers - layers_alike(last_, routes);
    layers_run_ += between_kept_ == 0 ? layers : std::min(layers, rounded_up(differ));
    last_ = routes;
  }

  double forwards() const { return 1.0 + static_cast<double>(layers_run_) / static_cast<double>(last_.size()); }

 private:
  // States are kept behind every so many layers from the last one back.
  int64_t rounded_up(int64_t layers) const { return (layers + between_kept_ - 1) / between_kept_ * between_kept_; }

  int64_t between_kept_;
  Routes last_;
  int64_t layers_run_ = 0;
};

// The judge's forwards over its samples, by the samples' length: each an average data rank's part of one.
std::map<int64_t, double> batches_of(int64_t samples, const EvaluateSection& section, int64_t data_ranks) {
  std::map<int64_t, double> batches;
  for (int64_t forward = 0; forward * kSamplesAtATime < samples; ++forward)
    batches[judged_length(forward, section)] += 1.0 / static_cast<double>(data_ranks);
  return batches;
}

// Of the samples' states on one rank.
int64_t bytes_behind_a_layer(const std::map<int64_t, double>& batches, const MeshShape& mesh, const ModelSpec& spec,
                             at::ScalarType dtype) {
  double tokens = 0.0;
  for (const auto& [length, count] : batches) tokens += count * static_cast<double>(kSamplesAtATime * length);
  const int64_t bytes_a_token = spec.hidden * static_cast<int64_t>(c10::elementSize(dtype));
  return static_cast<int64_t>(tokens) * bytes_a_token / (mesh.sequence ? mesh.tensor : 1);
}

}  // namespace

std::optional<JudgingForecast> forecast_judging(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  if (!asks_a_judge(config.stages)) return std::nullopt;
  const SelectSection& select = config.stages.select;
  JudgingForecast forecast{
      .layout = layout_of("evaluate", config, spec, ranks), .samples = select.judge_samples, .forwards = {}};
  const MeshShape& mesh = forecast.layout.shape;
  const auto batches = [&](int64_t samples) { return batches_of(samples, config.stages.evaluate, mesh.data); };
  const int64_t most_kept = HardMixtureJudge::most_kept_by_each(select);
  const auto counted = [&](int64_t samples) {
    const int64_t bytes = bytes_behind_a_layer(batches(samples), mesh, spec, dtype_of(config.device));
    return CountedJudge(spec.layers, layers_between_kept(spec.layers / mesh.pipeline, bytes, most_kept));
  };

  std::map<int64_t, CountedJudge> judges;  // by their samples
  const std::unique_ptr<Communicator> alone = single_communicator();
  JudgedSets judged("", *alone, [&](const std::vector<int64_t>& full_layers, int64_t samples, bool) {
    auto found = judges.find(samples);
    if (found == judges.end()) found = judges.emplace(samples, counted(samples)).first;
    found->second.judge(full_layers);
    proto::JudgedSet set;
    set.set_recall(-static_cast<double>(++forecast.sets));
    set.set_perplexity(1.0);
    return set;
  });
  (void)discretize(config, expected_budget(config, spec), gates_all_over(spec.layers), &judged);
  for (const auto& [samples, judge] : judges) {
    if (samples != forecast.samples) forecast.finalists = samples;
    for (const auto& [length, count] : batches(samples)) forecast.forwards[length] += count * judge.forwards();
  }
  return forecast;
}

double seconds_of(const JudgingForecast& judging, const RunConfig& config, const ModelSpec& spec, int64_t ranks,
                  const Card& card) {
  RunConfig batch = config;
  batch.stages.evaluate.samples = kSamplesAtATime * judging.layout.shape.data;
  double seconds = 0.0;
  for (const auto& [length, forwards] : judging.forwards) {
    batch.stages.evaluate.lengths = {length};
    seconds += forwards * time_of_step(forecast_stage("evaluate", batch, spec, ranks), card).seconds;
  }
  return seconds;
}

}  // namespace flashmorph
