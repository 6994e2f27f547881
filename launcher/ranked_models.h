#pragma once

#include <memory>
#include <string>

#include "core/export/model_folder.h"
#include "distributed/parallel/layout.h"
#include "distributed/parallel/mesh.h"
#include "launcher/device.h"

namespace CLI {
class App;
}

namespace flashmorph {

// Where a command runs the models that it measures.
struct ModelPlace {
  DeviceSection device{.kind = "cpu", .dtype = "", .threads = 1};  // dtype "": bfloat16 on cuda, else float32
  ParallelSection parallel;

  void add_options(CLI::App& app);
  void settle() { device.dtype = device.dtype.empty() ? device.kind == "cuda" ? "bfloat16" : "float32" : device.dtype; }
};

// The ranks of such a command on their devices, once they have found that all were started with the same words.
// Collective; BadInput when they were not.
class CommandRanks {
 public:
  CommandRanks(const ModelPlace& place, const std::string& words, Communicator& host);

  const at::Device& device() const { return device_.place(); }
  const std::string& description() const { return device_.description(); }
  Communicator& world() { return device_.world(); }

 private:
  RunDevice device_;
};

// A folder's model on a mesh of all ranks. Collective; BadInput for a folder that is no model, and a mesh that does not
// fit it.
class RankedModel {
 public:
  RankedModel(const std::string& folder, const ModelPlace& place, const at::Device& device, int64_t length,
              Communicator& world);

  // Of a checkpoint: what a hybrid would be that keeps full attention in `full_layers` layers, spread evenly, with
  // untrained branches in the others. BadInput for an export, or another number of layers than it has.
  void become_hybrid(const MixerSection& mixer, int64_t full_layers);

  const ModelFolder& folder() const { return folder_; }
  const MorphableModel& model() const { return *model_; }
  const Routes& routes() const { return routes_; }
  Mesh& mesh() { return *mesh_; }

 private:
  ModelFolder folder_;
  Routes routes_;
  std::unique_ptr<Mesh> mesh_;
  std::optional<MorphableModel> model_;
};

}  // namespace flashmorph
