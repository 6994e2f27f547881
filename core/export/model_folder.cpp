#include "core/export/model_folder.h"

#include "core/model/stored_model.h"

namespace flashmorph {

ModelFolder ModelFolder::open(const std::filesystem::path& folder) {
  const ConfigJson config = ConfigJson::open(folder);
  if (const ExportFormat* format = format_of(config)) {
    const HybridSpec hybrid = format->hybrid_of(config);
    return {
        .format = format->name(), .hybrid = hybrid, .weights = format->own_tensors(ModelFiles::open(folder), hybrid)};
  }
  StoredModel model = StoredModel::open(folder);
  std::vector<bool> full(static_cast<size_t>(model.spec.layers), true);
  return {.format = "checkpoint",
          .hybrid = {.model = model.spec, .mixer = {}, .full = std::move(full)},
          .weights = std::move(model.weights),
          .notes = std::move(model.notes)};
}

Routes ModelFolder::routes() const {
  Routes routes;
  for (const bool full : hybrid.full) routes.push_back(full ? Route::full() : Route::linear());
  return routes;
}

MorphableModel ModelFolder::load(const Placement& placement, Shard& shard, LayerRange layers,
                                 PipelinePeers& pipeline_peers) const {
  return MorphableModel::load_hybrid(weights, hybrid.model, hybrid.mixer, hybrid.full, placement, shard, layers,
                                     pipeline_peers);
}

}  // namespace flashmorph
