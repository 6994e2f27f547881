#pragma once

#include <memory>
#include <optional>

#include "core/config/run_config.h"
#include "core/io/model_files.h"
#include "core/morph/morphable_model.h"
#include "distributed/parallel/layout.h"

namespace flashmorph {

// This rank's piece of the teacher, and the mesh that it lies on. A stage with another layout gets a new mesh and a new
// piece, read from disk again: only one is held at a time. Whether tensor ranks share the tokens changes no piece.
class PlacedModel {
 public:
  PlacedModel(Communicator& world, const RunConfig& config, ModelSpec spec, ModelFiles teacher, at::ScalarType dtype,
              at::Device device = at::kCPU)
      : world_(world),
        config_(config),
        spec_(std::move(spec)),
        teacher_(std::move(teacher)),
        dtype_(dtype),
        device_(device) {}

  // Collective. The model has branches at their initial values when it is new.
  void place(const Layout& layout);

  void read_branches(const std::filesystem::path& file);   // the trained ones. Collective
  void start_branches();                                   // as align finds them. Collective
  void keep_branches() { branches_ = Branches::trained; }  // what align made of them is what is on disk
  bool has_trained_branches() const { return branches_ == Branches::trained; }

  const ModelSpec& spec() const { return spec_; }
  int64_t element_bytes() const { return static_cast<int64_t>(c10::elementSize(dtype_)); }
  Mesh& mesh() { return *mesh_; }
  MorphableModel& model() { return *model_; }
  int64_t bytes_moved() const { return retired_bytes_ + (mesh_ ? mesh_->bytes_moved() : 0); }  // on all meshes so far

 private:
  Communicator& world_;
  const RunConfig& config_;
  ModelSpec spec_;
  ModelFiles teacher_;
  at::ScalarType dtype_;
  at::Device device_;
  Layout layout_;
  std::unique_ptr<Mesh> mesh_;
  std::optional<MorphableModel> model_;
  enum class Branches { initial, in_training, trained } branches_ = Branches::initial;
  int64_t retired_bytes_ = 0;
};

}  // namespace flashmorph
