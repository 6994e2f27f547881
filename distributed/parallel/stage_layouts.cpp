#include "distributed/parallel/stage_layouts.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace flashmorph {
namespace {

// What a stage says of its mesh.
struct MeshWish {
  ParallelSection parallel;
  int64_t length;     // tokens of its longest sequence
  bool makes_logits;  // then the head counts
};

MeshWish wish_of(const std::string& stage, const StagesSection& stages) {
  if (const TrainingSection* section = stages.training(stage))
    return {section->parallel, section->longest(), /*makes_logits=*/stage != "align" && stage != "select"};
  TORCH_CHECK(stage == "evaluate", "no stage ", stage, " has a mesh of its own");
  MeshWish wish{stages.evaluate.parallel, std::ranges::max(stages.evaluate.lengths), true};
  wish.parallel.sequence = false;  // greedy decoding goes token by token
  return wish;
}

bool is_same_mesh(const ParallelSection& a, const ParallelSection& b) {
  return a.tensor == b.tensor && a.pipeline == b.pipeline && a.pipeline_cuts == b.pipeline_cuts;
}

}  // namespace

at::ScalarType dtype_of(const DeviceSection& device) {
  if (device.dtype == "bfloat16") return at::kBFloat16;
  return device.dtype == "float64" ? at::kDouble : at::kFloat;
}

Layout layout_of(const std::string& stage, const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  const MeshWish wish = wish_of(stage, config.stages);
  const std::string section =
      is_same_mesh(wish.parallel, config.parallel) ? "parallel" : "stages." + stage + ".parallel";
  return Layout::of(ranks, wish.parallel, section, spec, wish.length, wish.makes_logits);
}

}  // namespace flashmorph
