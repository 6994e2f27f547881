#include "core/export/export_format.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/model/weights.h"

namespace flashmorph {

const ExportFormat& qwen3_5_format();
const ExportFormat& granite_hybrid_format();
std::vector<const ExportFormat*> sliding_window_formats();
const ExportFormat& flashmorph_format();

namespace {

using Json = nlohmann::ordered_json;

Json rope_parameters(const Rope& rope) {
  Json json = {{"rope_type", "default"}, {"rope_theta", rope.theta}};
  if (rope.kind == Rope::Kind::plain) return json;
  json["factor"] = rope.factor;
  if (rope.kind == Rope::Kind::linear) {
    json["rope_type"] = "linear";
    return json;
  }
  json["original_max_position_embeddings"] = static_cast<int64_t>(rope.original_positions);
  if (rope.kind == Rope::Kind::llama3) {
    json["rope_type"] = "llama3";
    json["low_freq_factor"] = rope.low_frequency_factor;
    json["high_freq_factor"] = rope.high_frequency_factor;
  } else {
    json["rope_type"] = "yarn";
    json["beta_fast"] = rope.beta_fast;
    json["beta_slow"] = rope.beta_slow;
    json["truncate"] = rope.whole_pairs;
    json["attention_factor"] = rope.scale;
  }
  return json;
}

// Formats that users ask for by name and that are none here, and why.
const std::map<std::string, std::string>& refused_formats() {
  static const std::map<std::string, std::string> known = {
      {"minicpm_sala",
       "SGLang's kernel for the next token gives nothing for heads of fewer than 128 channels, and nothing else reads "
       "the format to compare with"},
      {"gguf", "deploy/hf_to_gguf.py makes it of an export in qwen3_5_text or granitemoehybrid"}};
  return known;
}

}  // namespace

const std::vector<const ExportFormat*>& export_formats() {
  static const std::vector<const ExportFormat*> all = [] {
    std::vector<const ExportFormat*> formats = sliding_window_formats();
    formats.insert(formats.begin(), {&qwen3_5_format(), &granite_hybrid_format()});
    formats.push_back(&flashmorph_format());
    return formats;
  }();
  return all;
}

const ExportFormat* format_of(const ConfigJson& config) {
  for (const ExportFormat* format : export_formats())
    if (format->reads(config)) return format;
  return nullptr;
}

const ExportFormat& export_format(const std::string& name, const ModelSpec& model, const MixerSection& mixer) {
  if (const auto refused = refused_formats().find(name); refused != refused_formats().end())
    throw BadInput("stages.export.format", fmt::format("is '{}', which is not written: {}", name, refused->second));
  std::string reasons;
  std::vector<std::string> names;
  for (const ExportFormat* format : export_formats()) {
    names.push_back(format->name());
    if (name != "auto" && name != format->name()) continue;
    const std::string obstacle = format->obstacle(model, mixer);
    if (obstacle.empty()) return *format;
    reasons += fmt::format("{}{} cannot hold this hybrid: {}", reasons.empty() ? "" : "; ", format->name(), obstacle);
  }
  throw BadInput("stages.export.format",
                 reasons.empty() ? fmt::format("is '{}', expected one of: auto, {}", name, listed(names)) : reasons);
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

std::string beyond_granite(const ModelSpec& model) {
  if (model.query_key_norm) return "norm of queries and keys";
  if (model.norm_after) return "norms behind attention and feed-forward";
  if (model.output_bias && !model.attention_bias) return "bias of attention's output alone";
  return model.experts.count > 0 ? "experts that are a feed-forward each" : "";
}

Json granite_multipliers(const ModelSpec& model) {
  return {{"embedding_multiplier", model.embedding_multiplier},
          {"residual_multiplier", model.residual_multiplier},
          {"attention_multiplier", model.attention_scale()},
          {"logits_scaling", model.logit_divisor}};
}

bool lacks_output_bias(const ModelSpec& model) { return model.attention_bias && !model.output_bias; }

std::pair<std::string, at::Tensor> no_output_bias(const ModelSpec& model, int64_t layer, const NamedTensors& own) {
  return {layer_prefix(layer) + "self_attn.o_proj.bias",
          at::zeros({model.hidden}, own.front().second.options().requires_grad(false))};
}

Json decoder_config(const char* architecture, const char* model_type, const ModelSpec& model, const Json& teacher) {
  Json config = {{"architectures", {architecture}},
                 {"model_type", model_type},
                 {"vocab_size", model.vocabulary},
                 {"hidden_size", model.hidden},
                 {"intermediate_size", model.intermediate},
                 {"num_hidden_layers", model.layers},
                 {"num_attention_heads", model.heads},
                 {"num_key_value_heads", model.kv_heads},
                 {"head_dim", model.head_dim},
                 {"hidden_act", "silu"},
                 {"rms_norm_eps", model.norm_epsilon},
                 {"attention_bias", model.attention_bias},
                 {"attention_dropout", 0.0},
                 {"tie_word_embeddings", model.tied_embeddings},
                 {"max_position_embeddings", model.max_positions},
                 {"rope_parameters", rope_parameters(model.rope)}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"})
    if (teacher.contains(key)) config[key] = teacher[key];
  return config;
}

std::vector<std::string> layer_types(const std::vector<bool>& full, const LayerNames& names) {
  std::vector<std::string> types;
  for (const bool layer : full) types.emplace_back(layer ? names.full : names.linear);
  return types;
}

std::vector<bool> full_layers(const ConfigJson& config, int64_t layers, const LayerNames& names) {
  std::vector<bool> full;
  for (const std::string& type : config.texts("layer_types")) {
    if (type != names.full && type != names.linear)
      config.fail("layer_types", fmt::format("holds '{}', expected {} or {}", type, names.full, names.linear));
    full.push_back(type == names.full);
  }
  if (static_cast<int64_t>(full.size()) != layers)
    config.fail("layer_types", fmt::format("lists {} layers of {}", full.size(), layers));
  return full;
}

}  // namespace flashmorph
