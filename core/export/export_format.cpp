#include "core/export/export_format.h"

#include <fmt/format.h>

#include "core/base/bad_input.h"

namespace flashmorph {

const ExportFormat& qwen3_5_format();
const ExportFormat& flashmorph_format();

const std::vector<const ExportFormat*>& export_formats() {
  static const std::vector<const ExportFormat*> all = {&qwen3_5_format(), &flashmorph_format()};
  return all;
}

const ExportFormat* format_of(const ConfigJson& config) {
  for (const ExportFormat* format : export_formats())
    if (format->reads(config)) return format;
  return nullptr;
}

const ExportFormat& export_format(const std::string& name, const ModelSpec& model, const MixerSection& mixer) {
  std::string reasons;
  for (const ExportFormat* format : export_formats()) {
    if (name != "auto" && name != format->name()) continue;
    const std::string obstacle = format->obstacle(model, mixer);
    if (obstacle.empty()) return *format;
    reasons += fmt::format("{}{} cannot hold this hybrid: {}", reasons.empty() ? "" : "; ", format->name(), obstacle);
  }
  throw BadInput("stages.export.format", reasons.empty() ? fmt::format("'{}' is no export format", name) : reasons);
}

std::string beyond_llama(const ModelSpec& model) {
  if (!model.no_rope.empty()) return "layers without rotation";
  if (model.norm_after) return "norms behind attention and feed-forward";
  if (model.norm_over_heads) return "norm over all heads";
  if (model.output_bias) return "bias of attention's output";
  if (model.mlp_bias) return "bias of the feed-forward";
  const bool scaled = model.embedding_multiplier != 1.0 || model.residual_multiplier != 1.0 ||
                      model.attention_multiplier != 0.0 || model.logit_divisor != 1.0;
  return scaled ? "multipliers of embeddings, scores, residuals and logits" : "";
}

std::vector<std::string> layer_types(const std::vector<bool>& full) {
  std::vector<std::string> types;
  for (const bool layer : full) types.emplace_back(layer ? "full_attention" : "linear_attention");
  return types;
}

std::vector<bool> full_layers(const ConfigJson& config, int64_t layers) {
  std::vector<bool> full;
  for (const std::string& type : config.texts("layer_types")) {
    if (type != "full_attention" && type != "linear_attention")
      config.fail("layer_types", fmt::format("holds '{}', expected full_attention or linear_attention", type));
    full.push_back(type == "full_attention");
  }
  if (static_cast<int64_t>(full.size()) != layers)
    config.fail("layer_types", fmt::format("lists {} layers of {}", full.size(), layers));
  return full;
}

}  // namespace flashmorph
