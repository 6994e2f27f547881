#include "core/export/describe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "core/io/model_files.h"
#include "core/mixer/linear_branch.h"
#include "core/model/stored_model.h"

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

void read_hybrid(const std::filesystem::path& folder, const ExportFormat& format, ModelDescription& description) {
  description.format = format.name();
  description.hybrid = format.hybrid_of(ConfigJson::open(folder));
  description.embedding_dtype = ModelFiles::open(folder).entry("model.embed_tokens.weight").dtype;
}

void read_teacher(const std::filesystem::path& folder, ModelDescription& description) {
  StoredModel model = StoredModel::open(folder);
  description.format = "checkpoint";
  description.hybrid.model = model.spec;
  description.hybrid.full.assign(static_cast<size_t>(model.spec.layers), true);
  description.embedding_dtype = model.weights.entry("model.embed_tokens.weight").dtype;
  description.notes = std::move(model.notes);
}

}  // namespace

int64_t ModelDescription::full_layer_count() const { return std::ranges::count(hybrid.full, true); }

ModelDescription describe(const std::filesystem::path& folder) {
  ModelDescription description;
  if (const ExportFormat* format = format_of(ConfigJson::open(folder)))
    read_hybrid(folder, *format, description);
  else
    read_teacher(folder, description);
  count_weights(ModelFiles::open(folder), description);
  const ModelSpec& model = description.hybrid.model;
  const auto element = static_cast<int64_t>(c10::elementSize(description.embedding_dtype));
  const int64_t layer = model.kv_bytes(element);
  description.kv_bytes_per_token = description.full_layer_count() * layer;
  description.full_kv_bytes_per_token = model.layers * layer;
  if (const int64_t linear = model.layers - description.full_layer_count(); linear > 0)
    description.state_bytes =
        linear * mixer_kind(description.hybrid.mixer).cache_bytes(description.hybrid.mixer, model, element);
  return description;
}

}  // namespace flashmorph
