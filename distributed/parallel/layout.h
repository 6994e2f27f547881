#pragma once

#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

// How a stage lies on the ranks: the mesh, and the layers of each pipeline rank.
struct Layout {
  MeshShape shape;
  std::vector<LayerRange> layers;

  bool operator==(const Layout&) const = default;

  // BadInput under `section` (parallel, stages.distill.parallel) for a mesh that does not fit the ranks or the model.
  // Without pipeline_cuts the layers are balanced by their cost in a forward pass over `length` tokens; the head counts
  // in stages that make logits.
  static Layout of(int64_t ranks, const ParallelSection& parallel, const std::string& section, const ModelSpec& spec,
                   int64_t length, bool makes_logits);
};

}  // namespace flashmorph
