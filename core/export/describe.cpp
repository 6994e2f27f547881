#include "core/export/describe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "core/export/model_folder.h"
#include "core/mixer/linear_branch.h"

namespace flashmorph {
namespace {

void count_weights(const ModelFiles& files, ModelDescription& description) {
  for (const std::string& name : files.names()) {
    const TensorEntry& entry = files.entry(name);
    const int64_t elements = std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
    ++description.tensors;
    description.parameters += elements;
    description.bytes += static_cast<int64_t>(entry.bytes);
    description.parameters_as[std::string(c10::toString(entry.dtype))] += elements;
  }
}

}  // namespace

int64_t ModelDescription::full_layer_count() const { return std::ranges::count(hybrid.full, true); }

ModelDescription describe(const std::filesystem::path& folder) {
  ModelFolder model = ModelFolder::open(folder);
  ModelDescription description;
  description.format = std::move(model.format);
  description.hybrid = std::move(model.hybrid);
  description.embedding_dtype = model.dtype();
  description.notes = std::move(model.notes);
  count_weights(ModelFiles::open(folder), description);
  const ModelSpec& spec = description.hybrid.model;
  const auto element = static_cast<int64_t>(c10::elementSize(description.embedding_dtype));
  const int64_t layer = spec.kv_bytes(element);
  description.kv_bytes_per_token = description.full_layer_count() * layer;
  description.full_kv_bytes_per_token = spec.layers * layer;
  if (const int64_t linear = spec.layers - description.full_layer_count(); linear > 0)
    description.state_bytes =
        linear * mixer_kind(description.hybrid.mixer).cache_bytes(description.hybrid.mixer, spec, element);
  return description;
}

}  // namespace flashmorph
