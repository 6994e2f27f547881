#include "distributed/forecast/run_forecast.h"

#include "core/base/bad_input.h"
#include "distributed/coordinator/checks.h"
#include "distributed/coordinator/stage_table.h"
#include "distributed/parallel/stage_layouts.h"

namespace flashmorph {
namespace {

bool would_do(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  try {
    check_settings(config, spec, ranks);
    return true;
  } catch (const BadInput&) {
    return false;
  }
}

}  // namespace

StageForecast forecast_stage(const std::string& stage, const RunConfig& config, const ModelSpec& spec, int64_t ranks,
                             const FullLayers& full_layers) {
  StageForecast forecast{.stage = stage, .layout = layout_of(stage, config, spec, ranks), .shape = {}, .ranks = {}};
  if (const TrainingSection* section = config.stages.training(stage)) {
    forecast.shape = StepShape::of(*section, forecast.layout.shape.data);
    forecast.steps = section->steps();
  } else {
    forecast.shape = StepShape::of(config.stages.evaluate, forecast.layout.shape.data);
  }
  for (int64_t pipeline = 0; pipeline < forecast.layout.shape.pipeline; ++pipeline)
    forecast.ranks.push_back(rehearse(stage, config, spec, forecast.layout, pipeline, full_layers));
  return forecast;
}

std::vector<StageForecast> forecast_run(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  std::vector<StageForecast> stages;
  for (const char* stage : kStagesOnMeshes)
    if (stage_named(stage).is_in(config)) stages.push_back(forecast_stage(stage, config, spec, ranks));
  return stages;
}

double flop_of(int64_t tokens, const std::string& stage, const RunConfig& config, const ModelSpec& spec,
               const FullLayers& full_layers) {
  RunConfig once = on_mesh(config, {1, 1});
  for (ParallelSection* parallel : once.stages.parallels()) parallel->recompute = "none";
  const double flop = forecast_stage(stage, once, spec, 1, full_layers).ranks.front().flop;
  const TrainingSection& section = *config.stages.training(stage);
  return flop * static_cast<double>(tokens) / static_cast<double>(section.batch_tokens);
}

RunConfig on_mesh(RunConfig config, const MeshChoice& mesh) {
  const auto choose = [&](ParallelSection& parallel) {
    parallel.tensor = mesh.tensor;
    parallel.pipeline = mesh.pipeline;
    parallel.pipeline_cuts.clear();
  };
  choose(config.parallel);
  for (ParallelSection* stage : config.stages.parallels()) choose(*stage);
  return config;
}

std::vector<MeshChoice> meshes_that_would_do(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  std::vector<MeshChoice> meshes;
  for (int64_t replica = 1; replica <= ranks; ++replica)
    for (int64_t tensor = 1; ranks % replica == 0 && tensor <= replica; ++tensor)
      if (replica % tensor == 0 && would_do(on_mesh(config, {tensor, replica / tensor}), spec, ranks))
        meshes.push_back({tensor, replica / tensor});
  return meshes;
}

}  // namespace flashmorph
