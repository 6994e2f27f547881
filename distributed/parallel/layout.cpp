#include "distributed/parallel/layout.h"

#include "core/base/bad_input.h"
#include "core/model/cost.h"
#include "distributed/parallel/layer_cuts.h"

namespace flashmorph {

Layout Layout::of(int64_t ranks, const ParallelSection& parallel, const std::string& section, const ModelSpec& spec,
                  int64_t length, bool makes_logits) {
  Layout layout;
  layout.shape = MeshShape::of(ranks, parallel.tensor, parallel.pipeline, section);
  layout.shape.sequence = parallel.sequence && parallel.tensor > 1;
  spec.check_tensor_parallel(parallel.tensor, section + ".tensor");
  if (parallel.pipeline > spec.layers)
    throw BadInput(section + ".pipeline", std::to_string(parallel.pipeline) + " ranks for a model of " +
                                              std::to_string(spec.layers) + " layers, expected at most one a layer");
  if (!parallel.pipeline_cuts.empty()) {
    layout.layers = layers_cut_at(parallel.pipeline_cuts, spec.layers, parallel.pipeline, section + ".pipeline_cuts");
  } else {
    PartCosts costs{.embedding = embedding_cost(spec), .layers = {}, .head = makes_logits ? head_cost(spec) : 0.0};
    for (int64_t layer = 0; layer < spec.layers; ++layer) costs.layers.push_back(layer_cost(spec, layer, length));
    layout.layers = balanced_layers(costs, parallel.pipeline);
  }
  return layout;
}

}  // namespace flashmorph
