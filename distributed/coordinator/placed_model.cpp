#include "distributed/coordinator/placed_model.h"

#include <algorithm>

#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

bool is_same_mesh(const ParallelSection& a, const ParallelSection& b) {
  return a.tensor == b.tensor && a.pipeline == b.pipeline && a.pipeline_cuts == b.pipeline_cuts;
}

}  // namespace

at::ScalarType dtype_of(const DeviceSection& device) {
  if (device.dtype == "bfloat16") return at::kBFloat16;
  return device.dtype == "float64" ? at::kDouble : at::kFloat;
}

Layout layout_of(const std::string& stage, const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  const StagesSection& stages = config.stages;
  const auto layout = [&](const ParallelSection& parallel, int64_t length, bool makes_logits) {
    const std::string section = is_same_mesh(parallel, config.parallel) ? "parallel" : "stages." + stage + ".parallel";
    return Layout::of(ranks, parallel, section, spec, length, makes_logits);
  };
  if (const TrainingSection* section = stages.training(stage))
    return layout(section->parallel, section->longest(), stage == "distill" || stage == "finetune");
  TORCH_CHECK(stage == "evaluate", "no stage ", stage, " has a mesh of its own");
  ParallelSection parallel = stages.evaluate.parallel;
  parallel.sequence = false;  // greedy decoding goes token by token
  return layout(parallel, std::ranges::max(stages.evaluate.lengths), true);
}

void PlacedModel::place(const Layout& layout) {
  if (model_ && layout_ == layout) return;
  model_.reset();
  if (!mesh_ || mesh_->shape() != layout.shape) {
    retired_bytes_ = bytes_moved();
    mesh_.reset();
    mesh_ = std::make_unique<Mesh>(world_, layout.shape);
  }
  layout_ = layout;
  on_all_ranks(world_, [&] {
    const Placement placement{mesh_->tensor_rank(), layout.shape.tensor, dtype_, device_};
    model_ = MorphableModel::load(teacher_, spec_, placement, mesh_->shard(), layout.layers[mesh_->pipeline_rank()],
                                  mesh_->pipeline_peers());
  });
  start_branches();
}

void PlacedModel::start_branches() {
  model_->add_branches(config_.mixer, config_.run.seed);
  trained_ = false;
}

void PlacedModel::read_branches(const std::filesystem::path& file) {
  on_all_ranks(world_,
               [&] { read_into(model_->branch_parameters(), ModelFiles::open_file(file), model_->placement()); });
  trained_ = true;
}

}  // namespace flashmorph
