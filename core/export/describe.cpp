#include "core/export/describe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "core/io/checkpoint.h"

namespace flashmorph {
namespace {

void count_weights(const Checkpoint& checkpoint, ModelDescription& model) {
  for (const std::string& name : checkpoint.names()) {
    const TensorEntry& entry = checkpoint.entry(name);
    const int64_t elements = std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
    ++model.tensors;
    model.parameters += elements;
    model.bytes += static_cast<int64_t>(entry.bytes);
    model.parameters_as[c10::toString(entry.dtype)] += elements;
  }
}

// The dtype of most parameters: what a loader would hold the cache in.
int64_t element_bytes(const Checkpoint& checkpoint) {
  return static_cast<int64_t>(c10::elementSize(checkpoint.entry("model.embed_tokens.weight").dtype));
}

}  // namespace

ModelDescription describe(const std::filesystem::path& folder) {
  ModelDescription model;
  model.spec = ModelSpec::open(folder);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  count_weights(checkpoint, model);
  model.full_layers.resize(model.spec.layers);
  std::iota(model.full_layers.begin(), model.full_layers.end(), 0);
  model.kv_bytes_per_token = static_cast<int64_t>(model.full_layers.size()) * 2 * model.spec.kv_heads *
                             model.spec.head_dim * element_bytes(checkpoint);
  return model;
}

}  // namespace flashmorph
