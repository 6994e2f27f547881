#include "launcher/ranked_models.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "core/base/bad_input.h"
#include "core/select/uniform.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/stage_layouts.h"
#include "launcher/start_checks.h"

namespace flashmorph {

void ModelPlace::add_options(CLI::App& app) {
  app.add_option("--device", device.kind, "cpu, or cuda: each rank of a host takes a card (default: cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--dtype", device.dtype, "of weights and activations (default: bfloat16 on cuda, float32 on cpu)")
      ->check(CLI::IsMember({"float32", "float64", "bfloat16"}));
  app.add_option("--threads", device.threads, "torch threads a rank (default: 1)")->check(CLI::Range(1, 1024));
  app.add_option("--tensor", parallel.tensor, "ranks a layer is split over (default: 1)")->check(CLI::PositiveNumber);
  app.add_option("--pipeline", parallel.pipeline, "ranks the layers are dealt out to (default: 1)")
      ->check(CLI::PositiveNumber);
}

CommandRanks::CommandRanks(const ModelPlace& place, const std::string& words, Communicator& host)
    : device_(place.device, host, HealthSection().step) {  // no tensor before it
  StartFacts facts = start_facts({});
  facts.arguments = words;
  check_same_start(facts, host);
  at::set_num_threads(static_cast<int>(place.device.threads));
}

RankedModel::RankedModel(const std::string& folder, const ModelPlace& place, const at::Device& device, int64_t length,
                         Communicator& world) {
  Layout layout;
  on_all_ranks(world, [&] {
    folder_ = ModelFolder::open(folder);
    layout = Layout::of(world.size(), place.parallel, "the mesh", folder_.hybrid.model, length, /*makes_logits=*/true);
  });
  routes_ = folder_.routes();
  mesh_ = std::make_unique<Mesh>(world, layout.shape);
  on_all_ranks(world, [&] {
    const Placement placement{mesh_->tensor_rank(), layout.shape.tensor, dtype_of(place.device), device};
    model_ = folder_.load(placement, mesh_->shard(), layout.layers[static_cast<size_t>(mesh_->pipeline_rank())],
                          mesh_->pipeline_peers());
  });
}

void RankedModel::become_hybrid(const MixerSection& mixer, int64_t full_layers) {
  const int64_t layers = folder_.hybrid.model.layers;
  if (folder_.format != "checkpoint")
    throw BadInput("--hybrid", "asks for a hybrid of an export; name the checkpoint that it came from");
  if (full_layers >= layers)
    throw BadInput("--hybrid", fmt::format("keeps {} layers of {}, expected fewer", full_layers, layers));
  model_->add_branches(mixer, /*seed=*/1);
  routes_ = routes_that_keep(uniform_layers(layers, full_layers), layers);
}

}  // namespace flashmorph
