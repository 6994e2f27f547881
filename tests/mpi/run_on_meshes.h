#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/io/model_files.h"
#include "distributed/checkpoint/global_tensors.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/parallel/layer_cuts.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/stages/context.h"
#include "tests/mpi/world.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace flashmorph::test {

constexpr const char* kTeacher = "tests/data/passkey-teacher";

// A small model in a folder that every rank sees; its vocabulary is the teacher's tokenizer's.
class SharedModel {
 public:
  explicit SharedModel(SmallModel model) {
    model.vocabulary = 1024;
    path_ = world().broadcast_text(folder_.path().string(), 0);
    if (world().rank() == 0) write_small_model(path_, model);
    world().barrier();
  }
  ~SharedModel() { world().barrier(); }  // nobody still reads
  const std::string& path() const { return path_; }

 private:
  TemporaryFolder folder_;
  std::string path_;
};

// So many steps of each stage, 512 tokens of passkeys each.
inline RunConfig run_of_steps(int64_t align, int64_t select, int64_t distill) {
  const auto stage = [](const char* name, int64_t steps) {
    return fmt::format("  {}: {{tokens: {}, batch_tokens: 512, data: {{lengths: 128, passkeys: 2, words: 4}}}}\n", name,
                       512 * steps);
  };
  return RunConfig::from_yaml(
      "model: {path: unused}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\nstages:\n" +
          stage("align", align) + stage("select", select) + stage("distill", distill),
      "test");
}

struct StageInputs {
  Tokenizer tokenizer = Tokenizer::open(std::string(kTeacher) + "/tokenizer.json");
  Corpus corpus = Corpus::open({.text = "tests/data/text/tinyshakespeare.txt"}, tokenizer, 512);
  PasskeyTask passkeys{tokenizer};
  StageObserver observer;
  StopSignal stop;
  Watchdog watchdog{HealthSection(), world(), std::vector<std::string>(world().size(), "host"), MpiSession::abort};
};

inline StageInputs& inputs() {
  static StageInputs shared;
  return shared;
}

inline StageContext context(Mesh& mesh, const RunConfig& config, const Corpus& corpus = inputs().corpus) {
  return {{config, corpus, inputs().passkeys, inputs().observer, inputs().stop, inputs().watchdog}, mesh};
}

// This rank's piece, layers dealt out evenly.
inline MorphableModel load(const std::string& path, Mesh& mesh, const RunConfig& config, at::ScalarType dtype) {
  const ModelSpec spec = ModelSpec::open(path);
  const Placement placement{mesh.tensor_rank(), mesh.shape().tensor, dtype, at::kCPU};
  const auto layers = balanced_layers({.layers = std::vector<double>(spec.layers, 1.0)}, mesh.shape().pipeline);
  MorphableModel model = MorphableModel::load(ModelFiles::open(path), spec, placement, mesh.shard(),
                                              layers[mesh.pipeline_rank()], mesh.pipeline_peers());
  model.add_branches(config.mixer, config.run.seed);
  return model;
}

inline std::string text_of(const MeshShape& shape) {
  return "data " + std::to_string(shape.data) + " x pipeline " + std::to_string(shape.pipeline) + " x tensor " +
         std::to_string(shape.tensor) + (shape.sequence ? ", tokens shared" : "");
}

// Every mesh of these ranks with at most so many tensor and pipeline ranks; of 8 ranks only 2 x 2 x 2.
inline std::vector<MeshShape> every_mesh(int64_t most_tensor = 4, int64_t most_pipeline = 4) {
  const int64_t ranks = world().size();
  if (ranks == 8) return {{2, 2, 2}};
  std::vector<MeshShape> shapes;
  for (int64_t tensor = 1; tensor <= most_tensor; ++tensor)
    for (int64_t pipeline = 1; pipeline <= most_pipeline; ++pipeline)
      if (ranks % (tensor * pipeline) == 0) shapes.push_back(MeshShape::of(ranks, tensor, pipeline));
  return shapes;
}

// And those of them with several tensor ranks once more, sharing the tokens, too.
inline std::vector<MeshShape> every_mesh_and_sequence() {
  std::vector<MeshShape> shapes = every_mesh();
  for (MeshShape shape : every_mesh()) {
    shape.sequence = true;
    if (shape.tensor > 1) shapes.push_back(shape);
  }
  return shapes;
}

// What rank 0 makes alone, for all: a float64 tensor.
inline at::Tensor made_by_one_rank(const std::function<at::Tensor(Mesh&)>& make) {
  at::Tensor made = at::zeros({0}, at::kDouble);
  on_all_ranks(world(), [&] {
    if (world().rank() != 0) return;
    const auto single = single_communicator();
    Mesh one(*single, {1, 1, 1});
    made = make(one).to(at::kDouble).flatten().contiguous();
  });
  at::Tensor size = at::full({1}, made.numel(), at::kLong);
  world().broadcast(size, 0);
  if (world().rank() != 0) made = at::zeros({size.item<int64_t>()}, at::kDouble);
  world().broadcast(made, 0);
  return made;
}

// All tensors of a model behind one another, in the order of their names, on every rank.
inline at::Tensor flat_global(const Parameters& parameters, Mesh& mesh) {
  std::vector<at::Tensor> parts;
  for (const auto& [name, tensor] : gather_global(parameters, mesh)) parts.push_back(tensor.to(at::kDouble).flatten());
  at::Tensor size = at::zeros({1}, at::kLong), all = parts.empty() ? at::zeros({0}, at::kDouble) : at::cat(parts);
  size.fill_(all.numel());
  mesh.world().broadcast(size, 0);
  if (mesh.world().rank() != 0) all = at::zeros({size.item<int64_t>()}, at::kDouble);
  mesh.world().broadcast(all, 0);
  return all;
}

}  // namespace flashmorph::test
