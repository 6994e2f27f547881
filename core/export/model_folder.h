#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/export/export_format.h"
#include "core/morph/morphable_model.h"

namespace flashmorph {

// A model folder that can be run: a checkpoint that could be a teacher, or an export in any of the formats.
struct ModelFolder {
  std::string format;                   // "checkpoint", or the export format's name
  HybridSpec hybrid = {};               // of a checkpoint every layer is full
  ModelFiles weights;                   // under this program's names
  std::vector<std::string> notes = {};  // of a checkpoint, as StoredModel has them

  // BadInput when the folder is no model that this program knows.
  static ModelFolder open(const std::filesystem::path& folder);

  at::ScalarType dtype() const { return weights.entry("model.embed_tokens.weight").dtype; }  // as stored
  Routes routes() const;

  // This rank's piece. Shard and peers outlive it.
  MorphableModel load(const Placement& placement, Shard& shard, LayerRange layers, PipelinePeers& pipeline_peers) const;
};

}  // namespace flashmorph
