#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/io/safetensors.h"

namespace flashmorph::test {

struct SmallModel {
  int64_t layers = 2;
  int64_t hidden = 32;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 8;
  int64_t intermediate = 48;
  int64_t vocabulary = 64;
  int64_t max_positions = 4096;
  bool tied = true;
  at::ScalarType dtype = at::kFloat;
  uint64_t seed = 1;
};

inline nlohmann::json config_of(const SmallModel& model) {
  return {{"model_type", "qwen3"},
          {"architectures", {"Qwen3ForCausalLM"}},
          {"hidden_act", "silu"},
          {"vocab_size", model.vocabulary},
          {"hidden_size", model.hidden},
          {"intermediate_size", model.intermediate},
          {"num_hidden_layers", model.layers},
          {"num_attention_heads", model.heads},
          {"num_key_value_heads", model.kv_heads},
          {"head_dim", model.head_dim},
          {"max_position_embeddings", model.max_positions},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", model.tied}};
}

// Random weights of unit gain (matrices of standard deviation 1 / sqrt(inputs), norms around 1).
inline std::vector<std::pair<std::string, at::Tensor>> tensors_of(const SmallModel& model) {
  at::Generator generator = at::detail::createCPUGenerator(model.seed);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  const auto norm = [&](const std::string& name, int64_t size) {
    tensors.emplace_back(name + ".weight", (at::randn({size}, generator) * 0.2 + 1.0).to(model.dtype));
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    const double gain = 1.0 / std::sqrt(static_cast<double>(columns));
    tensors.emplace_back(name + ".weight", (at::randn({rows, columns}, generator) * gain).to(model.dtype));
  };
  matrix("model.embed_tokens", model.vocabulary, model.hidden);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    norm(prefix + "input_layernorm", model.hidden);
    norm(prefix + "post_attention_layernorm", model.hidden);
    matrix(prefix + "self_attn.q_proj", model.heads * model.head_dim, model.hidden);
    matrix(prefix + "self_attn.k_proj", model.kv_heads * model.head_dim, model.hidden);
    matrix(prefix + "self_attn.v_proj", model.kv_heads * model.head_dim, model.hidden);
    matrix(prefix + "self_attn.o_proj", model.hidden, model.heads * model.head_dim);
    norm(prefix + "self_attn.q_norm", model.head_dim);
    norm(prefix + "self_attn.k_norm", model.head_dim);
    matrix(prefix + "mlp.gate_proj", model.intermediate, model.hidden);
    matrix(prefix + "mlp.up_proj", model.intermediate, model.hidden);
    matrix(prefix + "mlp.down_proj", model.hidden, model.intermediate);
  }
  norm("model.norm", model.hidden);
  if (!model.tied) matrix("lm_head", model.vocabulary, model.hidden);
  return tensors;
}

// A Qwen3-shaped Hugging Face folder (config.json and model.safetensors) in an existing folder.
inline void write_small_model(const std::filesystem::path& folder, const SmallModel& model = {}) {
  std::ofstream(folder / "config.json") << config_of(model).dump(1);
  write_safetensors(folder / "model.safetensors", tensors_of(model));
}

}  // namespace flashmorph::test
