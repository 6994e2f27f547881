#include "distributed/coordinator/placed_model.h"

#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {

void PlacedModel::place(const Layout& layout) {
  Layout same_pieces = layout;
  same_pieces.shape.sequence = layout_.shape.sequence;
  if (model_ && layout_ == same_pieces) {
    mesh_->share_tokens(layout.shape.sequence);
    layout_ = layout;
    return;
  }
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
  model_->add_branches(config_.mixer, config_.run.seed);
  branches_ = Branches::initial;
}

void PlacedModel::start_branches() {
  if (branches_ != Branches::initial) model_->add_branches(config_.mixer, config_.run.seed);
  if (const std::string& file = config_.stages.align.branches; !file.empty()) read_branches(file);
  branches_ = Branches::in_training;
}

void PlacedModel::read_branches(const std::filesystem::path& file) {
  on_all_ranks(world_,
               [&] { read_into(model_->branch_parameters(), ModelFiles::open_file(file), model_->placement()); });
  branches_ = Branches::trained;
}

}  // namespace flashmorph
