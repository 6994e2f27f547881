#include "core/model/model_spec.h"

#include <algorithm>
#include <map>
#include <optional>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

// Which layers `sliding_window` limits where there are no layer_types.
enum class Window { none, all, by_flag, last_by_flag, unrotated_by_flag };  // by_flag: use_sliding_window

enum class Bias { none, queries_keys_values, by_flag };  // by_flag: attention_bias, the output's as well

enum class Experts { none, some_layers, all_layers };

// What sets the families apart; the numbers are what transformers takes for a key that is absent.
struct Family {
  Bias bias = Bias::none;
  bool mlp_bias_by_flag = false;
  bool query_key_norm = false;
  bool norm_over_heads = false;
  bool norm_after = false;
  bool some_unrotated = false;  // no_rope_layers
  bool multipliers = false;
  Experts experts = Experts::none;
  Window window = Window::none;
  std::optional<int64_t> window_size = {};
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  int64_t kv_heads = 0;  // 0: num_attention_heads
  double norm_epsilon = 1e-6;
  double rope_theta = 10000.0;
  bool only_plain_rope = false;  // another kind's name means a kind that changes with the length
  bool tied = false;
};

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> known = {
      {"llama", {.bias = Bias::by_flag, .mlp_bias_by_flag = true}},
      {"mistral", {.window = Window::all, .window_size = 4096, .kv_heads = 8}},
      {"mixtral",
       {.experts = Experts::all_layers, .window = Window::all, .kv_heads = 8, .norm_epsilon = 1e-5, .rope_theta = 1e6}},
      {"qwen2",
       {.bias = Bias::queries_keys_values, .window = Window::last_by_flag, .window_size = 4096, .kv_heads = 32}},
      {"qwen3",
       {.bias = Bias::by_flag,
        .query_key_norm = true,
        .window = Window::last_by_flag,
        .window_size = 4096,
        .head_dim = 128,
        .kv_heads = 32}},
      {"qwen3_moe",
       {.bias = Bias::by_flag,
        .query_key_norm = true,
        .experts = Experts::some_layers,
        .window = Window::by_flag,
        .window_size = 4096,
        .kv_heads = 4}},
      {"smollm3",
       {.bias = Bias::by_flag,
        .mlp_bias_by_flag = true,
        .some_unrotated = true,
        .window = Window::unrotated_by_flag,
        .kv_heads = 4,
        .rope_theta = 2e6,
        .tied = true}},
      {"olmo2",
       {.bias = Bias::by_flag,
        .query_key_norm = true,
        .norm_over_heads = true,
        .norm_after = true,
        .norm_epsilon = 1e-5}},
      {"granite", {.bias = Bias::by_flag, .mlp_bias_by_flag = true, .multipliers = true}},
      {"phi3", {.window = Window::all, .norm_epsilon = 1e-5, .only_plain_rope = true}}};
  return known;
}

// Families that users bring and that are no row above, and why.
const std::map<std::string, std::string>& refused_families() {
  static const std::string window = "most of its layers see a sliding window, which no mixer here stands for";
  static const std::string recurrent = "it has linear or state-space layers already";
  static const std::map<std::string, std::string> known = {
      {"gemma", "its feed-forward is GeGLU"},
      {"gemma2", "it caps attention's scores, which no fused attention does"},
      {"gemma3", window},
      {"gemma3_text", window},
      {"gpt_oss", window},
      {"cohere", "its attention and feed-forward run side by side, under LayerNorm"},
      {"cohere2", "its attention and feed-forward run side by side, under LayerNorm"},
      {"deepseek_v2", "its attention is latent (MLA)"},
      {"deepseek_v3", "its attention is latent (MLA)"},
      {"qwen3_next", recurrent},
      {"qwen3_5_text", recurrent},
      {"granitemoehybrid", recurrent},
      {"gpt2", "its positions are learned and its norms LayerNorm"},
      {"gpt_neox", "its norms are LayerNorm and a part of its channels is rotated"},
      {"phi", "its norms are LayerNorm and a part of its channels is rotated"},
      {"starcoder2", "its norms are LayerNorm and its feed-forward has no gate"}};
  return known;
}

const Family& family_of(const ConfigJson& config, const std::string& model_type) {
  const auto found = families().find(model_type);
  if (found != families().end()) return found->second;
  std::string supported;
  for (const std::string& name : model_families()) supported += (supported.empty() ? "" : ", ") + name;
  const auto why = refused_families().find(model_type);
  config.fail("model_type", "is '" + model_type + "'" + (why == refused_families().end() ? "" : ": " + why->second) +
                                ", supported: " + supported);
}

// Layers by whether `sliding_window` limits them, as transformers finds them.
std::vector<bool> windowed_layers(const ConfigJson& config, const Family& family, const ModelSpec& spec) {
  std::vector<bool> windowed(static_cast<size_t>(spec.layers), false);
  const std::vector<std::string> types = config.texts("layer_types");
  const bool by_type = family.window == Window::last_by_flag || family.window == Window::unrotated_by_flag;
  for (const std::string& type : types)
    if (type != "full_attention" && (type != "sliding_attention" || !by_type))
      config.fail("layer_types", "holds " + type + ", only full_attention is supported");
  if (by_type && !types.empty()) {
    if (types.size() != windowed.size())
      config.fail("layer_types", "lists " + std::to_string(types.size()) + " layers of " + std::to_string(spec.layers));
    for (size_t layer = 0; layer < types.size(); ++layer) windowed[layer] = types[layer] == "sliding_attention";
    return windowed;
  }
  if (family.window == Window::none) return windowed;
  if (family.window != Window::all && !config.flag("use_sliding_window", false)) return windowed;
  const int64_t first = family.window == Window::last_by_flag ? config.size_from_0("max_window_layers", 28) : 0;
  for (int64_t layer = first; layer < spec.layers; ++layer)
    windowed[static_cast<size_t>(layer)] = family.window != Window::unrotated_by_flag || !spec.rotates(layer);
  return windowed;
}

// A window at least as long as the longest position hides nothing.
void refuse_sliding_window(const ConfigJson& config, const Family& family, const ModelSpec& spec) {
  const std::vector<bool> windowed = windowed_layers(config, family, spec);
  const auto first = std::ranges::find(windowed, true);
  if (first == windowed.end()) return;
  const bool absent = !config.values().contains("sliding_window");
  if (absent && !family.window_size) return;
  if (!absent && !config.has("sliding_window")) return;  // null: none
  const int64_t size = absent ? *family.window_size : config.size("sliding_window");
  if (size >= spec.max_positions) return;
  config.fail("sliding_window", (absent ? "is missing, which means " : "is ") + std::to_string(size) +
                                    " here, shorter than max_position_embeddings, and limits layer " +
                                    std::to_string(first - windowed.begin()) + "; sliding windows are not supported");
}

void refuse_unsupported(const ConfigJson& config) {
  if (const std::string act = config.text("hidden_act", "silu"); act != "silu" && act != "swish")
    config.fail("hidden_act", "is " + act + ", only silu is supported");
  for (const char* key : {"quantization_config", "compression_config", "quantization"})
    if (config.has(key)) config.fail(key, "quantized weights are not supported");
}

std::vector<bool> unrotated_layers(const ConfigJson& config, int64_t layers) {
  std::vector<bool> unrotated;
  const std::vector<int64_t> rotated = config.indices("no_rope_layers");  // 1: rotated, whatever the name says
  const int64_t interval = config.size("no_rope_layer_interval", 4);
  if (config.has("no_rope_layers") && static_cast<int64_t>(rotated.size()) < layers)
    config.fail("no_rope_layers", "lists " + std::to_string(rotated.size()) + " layers of " + std::to_string(layers));
  for (int64_t layer = 0; layer < layers; ++layer)
    unrotated.push_back(rotated.empty() ? (layer + 1) % interval == 0 : rotated[static_cast<size_t>(layer)] == 0);
  return unrotated;
}

void read_multipliers(ModelSpec& spec, const ConfigJson& config) {
  spec.embedding_multiplier = config.number("embedding_multiplier", 1.0);
  spec.residual_multiplier = config.number("residual_multiplier", 1.0);
  spec.attention_multiplier = config.number("attention_multiplier", 1.0);
  spec.logit_divisor = config.number("logits_scaling", 1.0);
}

int64_t kv_heads_of(const ConfigJson& config, const Family& family, int64_t heads) {
  const bool is_null = config.values().contains("num_key_value_heads") && !config.has("num_key_value_heads");
  return config.size("num_key_value_heads", is_null || family.kv_heads == 0 ? heads : family.kv_heads);
}

ExpertsSpec experts_of(const ConfigJson& config, Experts kind, int64_t layers) {
  const bool renamed = !config.has("num_experts") && config.has("num_local_experts");  // as transformers 5 writes it
  const bool all_layers = kind == Experts::all_layers;
  ExpertsSpec experts;
  experts.count = config.size(renamed ? "num_local_experts" : "num_experts");
  experts.per_token = config.size("num_experts_per_tok", all_layers ? 2 : 8);
  experts.intermediate = config.size(all_layers ? "intermediate_size" : "moe_intermediate_size");
  experts.normalized = all_layers || config.flag("norm_topk_prob", false);
  if (experts.per_token > experts.count)
    config.fail("num_experts_per_tok", "is " + std::to_string(experts.per_token) + ", more than the " +
                                           std::to_string(experts.count) + " experts");
  if (all_layers) {
    experts.in_layer.assign(static_cast<size_t>(layers), true);
    return experts;
  }
  const int64_t step = config.size("decoder_sparse_step", 1);
  for (int64_t layer = 0; layer < layers; ++layer) experts.in_layer.push_back((layer + 1) % step == 0);
  for (const int64_t layer : config.indices("mlp_only_layers")) {
    if (layer >= layers)
      config.fail("mlp_only_layers", "names layer " + std::to_string(layer) + " of " + std::to_string(layers));
    experts.in_layer[static_cast<size_t>(layer)] = false;
  }
  return experts;
}

}  // namespace

std::vector<std::string> model_families() {
  std::vector<std::string> names;
  for (const auto& [name, family] : families()) names.push_back(name);
  return names;
}

ModelSpec ModelSpec::open(const std::filesystem::path& folder) { return of(ConfigJson::open(folder)); }

ModelSpec ModelSpec::of(const ConfigJson& config) {
  ModelSpec spec;
  spec.model_type = config.text("model_type", "");
  const Family& family = family_of(config, spec.model_type);
  refuse_unsupported(config);

  constexpr int64_t kMostLayers = 10000;  // more would be a mistake, and lists are made of them
  spec.vocabulary = config.size("vocab_size");
  spec.hidden = config.size("hidden_size");
  spec.intermediate = config.size("intermediate_size");
  spec.layers = config.size("num_hidden_layers");
  if (spec.layers > kMostLayers)
    config.fail("num_hidden_layers", "is " + std::to_string(spec.layers) + ", expected at most 10000");
  spec.heads = config.size("num_attention_heads");
  spec.kv_heads = kv_heads_of(config, family, spec.heads);
  spec.max_positions = config.size("max_position_embeddings");
  spec.norm_epsilon = config.number("rms_norm_eps", family.norm_epsilon);
  spec.rope = Rope::of(config, family.rope_theta);
  if (family.only_plain_rope && spec.rope.kind != Rope::Kind::plain)
    config.fail("rope_scaling",
                "asks for longrope in this family, whose frequencies change with the sequence's length");
  if (family.some_unrotated) spec.no_rope = unrotated_layers(config, spec.layers);
  spec.query_key_norm = family.query_key_norm;
  spec.norm_over_heads = family.norm_over_heads;
  spec.norm_after = family.norm_after;
  spec.output_bias = family.bias == Bias::by_flag && config.flag("attention_bias", false);
  spec.attention_bias = family.bias == Bias::queries_keys_values || spec.output_bias;
  spec.mlp_bias = family.mlp_bias_by_flag && config.flag("mlp_bias", false);
  spec.tied_embeddings = config.flag("tie_word_embeddings", family.tied);
  if (family.multipliers) read_multipliers(spec, config);
  if (family.experts != Experts::none) spec.experts = experts_of(config, family.experts, spec.layers);
  refuse_sliding_window(config, family, spec);

  if (spec.heads % spec.kv_heads != 0)
    config.fail("num_key_value_heads", "is " + std::to_string(spec.kv_heads) + ", which does not divide the " +
                                           std::to_string(spec.heads) + " attention heads");
  if (!config.has("head_dim") && family.head_dim == 0 && spec.hidden % spec.heads != 0)
    config.fail("head_dim", "is missing and hidden_size is not a multiple of num_attention_heads");
  spec.head_dim = config.size("head_dim", family.head_dim == 0 ? spec.hidden / spec.heads : family.head_dim);
  if (spec.head_dim % 2 != 0)
    config.fail("head_dim", "is " + std::to_string(spec.head_dim) + ", expected an even number");
  return spec;
}

void ModelSpec::check_tensor_parallel(int64_t tensor, const std::string& key) const {
  if (norm_over_heads && tensor > 1)
    throw BadInput(key, std::to_string(tensor) + " ranks would split the heads, over all of which " + model_type +
                            " normalises queries and keys; expected 1 (pipeline and data ranks do work)");
  const auto splits = [&](int64_t ranks) {
    return ranks >= 1 && heads % ranks == 0 && (kv_heads % ranks == 0 || ranks % kv_heads == 0) &&
           intermediate % ranks == 0 && experts.intermediate % ranks == 0 && vocabulary % ranks == 0;
  };
  if (splits(tensor)) return;
  std::string could;
  for (int64_t ranks = 1; ranks <= heads; ++ranks)
    if (splits(ranks)) could += (could.empty() ? "" : ", ") + std::to_string(ranks);
  const std::string expert =
      experts.count == 0 ? "" : ", experts' intermediate size " + std::to_string(experts.intermediate);
  throw BadInput(key, std::to_string(tensor) + " does not divide the model's " + std::to_string(heads) + " heads, " +
                          std::to_string(kv_heads) + " kv heads, intermediate size " + std::to_string(intermediate) +
                          expert + " and vocabulary " + std::to_string(vocabulary) + "; these would: " + could);
}

}  // namespace flashmorph
