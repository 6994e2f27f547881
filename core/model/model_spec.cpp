#include "core/model/model_spec.h"

#include <map>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

// When `sliding_window` limits what a token sees.
enum class Window { never, by_flag, always };  // by_flag: when use_sliding_window is true

// What sets the families apart; the numbers are what transformers takes for a key that is absent.
struct Family {
  bool query_key_norm = false;
  bool attention_bias = false;
  bool sparse = false;
  Window window = Window::never;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  int64_t kv_heads = 0;  // 0: num_attention_heads
};

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> known = {
      {"llama", {}},
      {"mistral", {.window = Window::always, .kv_heads = 8}},
      {"qwen2", {.attention_bias = true, .window = Window::by_flag, .kv_heads = 32}},
      {"qwen3", {.query_key_norm = true, .window = Window::by_flag, .head_dim = 128, .kv_heads = 32}},
      {"qwen3_moe", {.query_key_norm = true, .sparse = true, .window = Window::by_flag, .kv_heads = 4}}};
  return known;
}

std::string known_families() {
  std::string text;
  for (const auto& [name, family] : families()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// A window at least as long as the longest position hides nothing.
void refuse_sliding_window(const ConfigJson& config, Window window, int64_t max_positions) {
  for (const std::string& kind : config.texts("layer_types"))
    if (kind != "full_attention") config.fail("layer_types", "holds " + kind + ", only full_attention is supported");
  if (window == Window::by_flag && config.flag("use_sliding_window", false))
    config.fail("use_sliding_window", "is true, sliding windows are not supported");
  if (window != Window::always) return;
  if (!config.values().contains("sliding_window"))
    config.fail("sliding_window", "is missing, which means 4096 in this family; null says that there is none");
  if (config.has("sliding_window") && config.size("sliding_window") < max_positions)
    config.fail("sliding_window", "is " + std::to_string(config.size("sliding_window")) +
                                      ", shorter than max_position_embeddings; sliding windows are not supported");
}

void refuse_unsupported(const ConfigJson& config) {
  if (const std::string act = config.text("hidden_act", "silu"); act != "silu")
    config.fail("hidden_act", "is " + act + ", only silu is supported");
  if (config.flag("attention_bias", false))
    config.fail("attention_bias", "is true, a bias of the output projection is not supported");
  if (config.has("quantization_config")) config.fail("quantization_config", "quantized weights are not supported");
  if (config.flag("mlp_bias", false)) config.fail("mlp_bias", "is true, biases of the feed-forward are not supported");
}

ExpertsSpec experts_of(const ConfigJson& config, int64_t layers) {
  const bool renamed = !config.has("num_experts") && config.has("num_local_experts");  // as transformers 5 writes it
  ExpertsSpec experts;
  experts.count = config.size(renamed ? "num_local_experts" : "num_experts");
  experts.per_token = config.size("num_experts_per_tok", 8);
  experts.intermediate = config.size("moe_intermediate_size");
  experts.normalized = config.flag("norm_topk_prob", false);
  if (experts.per_token > experts.count)
    config.fail("num_experts_per_tok", "is " + std::to_string(experts.per_token) + ", more than the " +
                                           std::to_string(experts.count) + " experts");
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

ModelSpec ModelSpec::open(const std::filesystem::path& folder) { return of(ConfigJson::open(folder)); }

ModelSpec ModelSpec::of(const ConfigJson& config) {
  ModelSpec spec;
  spec.model_type = config.text("model_type", "");
  const auto found = families().find(spec.model_type);
  if (found == families().end())
    config.fail("model_type", "is '" + spec.model_type + "', supported: " + known_families());
  const Family& family = found->second;
  refuse_unsupported(config);

  constexpr int64_t kMostLayers = 10000;  // more would be a mistake, and lists are made of them
  spec.vocabulary = config.size("vocab_size");
  spec.hidden = config.size("hidden_size");
  spec.intermediate = config.size("intermediate_size");
  spec.layers = config.size("num_hidden_layers");
  if (spec.layers > kMostLayers)
    config.fail("num_hidden_layers", "is " + std::to_string(spec.layers) + ", expected at most 10000");
  spec.heads = config.size("num_attention_heads");
  spec.kv_heads = config.size("num_key_value_heads", family.kv_heads == 0 ? spec.heads : family.kv_heads);
  spec.max_positions = config.size("max_position_embeddings");
  spec.norm_epsilon = config.number("rms_norm_eps", 1e-6);
  spec.rope = Rope::of(config);
  spec.query_key_norm = family.query_key_norm;
  spec.attention_bias = family.attention_bias;
  spec.tied_embeddings = config.flag("tie_word_embeddings", false);
  if (family.sparse) spec.experts = experts_of(config, spec.layers);
  refuse_sliding_window(config, family.window, spec.max_positions);

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
