#include "core/export/describe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "core/io/model_files.h"
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

// A state a head in float32, and what the short convolution remembers of queries, keys and values.
int64_t layer_state_bytes(const HybridSpec& hybrid, int64_t element) {
  constexpr int64_t kFloat = 4;
  const int64_t width = hybrid.model.heads * hybrid.model.head_dim;
  const int64_t recent = mixer_kind(hybrid.mixer).remembered * 3 * width * element;
  return width * hybrid.model.head_dim * kFloat + recent;
}

HybridSpec hybrid_of(const ConfigJson& config, std::string& format_name) {
  if (const ExportFormat* format = format_of(config)) {
    format_name = format->name();
    return format->hybrid_of(config);
  }
  format_name = "checkpoint";
  HybridSpec teacher{.model = ModelSpec::of(config), .mixer = {}, .full = {}};
  teacher.full.assign(static_cast<size_t>(teacher.model.layers), true);
  return teacher;
}

}  // namespace

int64_t ModelDescription::full_layer_count() const { return std::ranges::count(hybrid.full, true); }

ModelDescription describe(const std::filesystem::path& folder) {
  ModelDescription description;
  description.hybrid = hybrid_of(ConfigJson::open(folder), description.format);
  const ModelFiles files = ModelFiles::open(folder);
  count_weights(files, description);
  const ModelSpec& model = description.hybrid.model;
  const auto element = static_cast<int64_t>(c10::elementSize(files.entry("model.embed_tokens.weight").dtype));
  const int64_t layer = model.kv_bytes(element);
  description.kv_bytes_per_token = description.full_layer_count() * layer;
  description.full_kv_bytes_per_token = model.layers * layer;
  description.state_bytes =
      (model.layers - description.full_layer_count()) * layer_state_bytes(description.hybrid, element);
  return description;
}

}  // namespace flashmorph
