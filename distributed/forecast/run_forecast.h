#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"
#include "distributed/forecast/rehearsal.h"

namespace flashmorph {

// What a stage of a run would take, rehearsed for each pipeline rank; all ranks of a pipeline rank are alike.
struct StageForecast {
  std::string stage;
  Layout layout;
  StepShape shape;    // of a training step; of evaluate: a batch of samples
  int64_t steps = 0;  // 0: not a training stage
  std::vector<RankUse> ranks;
};

// One stage, or every stage that the run goes through, in order. The config has passed check_settings.
StageForecast forecast_stage(const std::string& stage, const RunConfig& config, const ModelSpec& spec, int64_t ranks,
                             const FullLayers& full_layers = std::nullopt);
std::vector<StageForecast> forecast_run(const RunConfig& config, const ModelSpec& spec, int64_t ranks);

// The floating-point operations of a training stage's steps over so many tokens, rehearsed on one rank: however many
// ranks share them, what several tensor ranks do alike counts once, and what is computed again for want of memory too.
double flop_of(int64_t tokens, const std::string& stage, const RunConfig& config, const ModelSpec& spec,
               const FullLayers& full_layers);

struct MeshChoice {
  int64_t tensor;
  int64_t pipeline;
};

// The same run with this mesh in every stage, layers balanced.
RunConfig on_mesh(RunConfig config, const MeshChoice& mesh);

// The meshes of so many ranks on which check_settings has nothing to say about the run; the smallest replicas first,
// among those the least tensor ranks.
std::vector<MeshChoice> meshes_that_would_do(const RunConfig& config, const ModelSpec& spec, int64_t ranks);

}  // namespace flashmorph
