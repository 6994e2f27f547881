#include "core/model/weights.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <vector>

namespace flashmorph {
namespace {

using Shape = std::vector<int64_t>;

// Reads this rank's slice of a tensor whose global shape is known.
at::Tensor read_split(const Checkpoint& checkpoint, const std::string& name, const Shape& global, Split split,
                      const Placement& placement) {
  if (split == Split::none) return checkpoint.read(name, global, placement.dtype).to(placement.device);
  const int64_t dim = split == Split::rows ? 0 : 1;
  TORCH_CHECK(global[dim] % placement.shard_size == 0, name, " does not split over ", placement.shard_size, " ranks");
  const int64_t each = global[dim] / placement.shard_size;
  return checkpoint.read_slice(name, global, placement.dtype, dim, placement.shard_rank * each, each).to(placement.device);
}

}  // namespace

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

AttentionWeights load_attention(const Checkpoint& checkpoint, const ModelSpec& spec, int64_t layer,
                                const Placement& placement) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  const int64_t queries = spec.heads * spec.head_dim, keys = spec.kv_heads * spec.head_dim;
  const auto read = [&](const char* name, const Shape& shape, Split split) {
    return read_split(checkpoint, prefix + name, shape, split, placement);
  };
  AttentionWeights weights;
  weights.q = read("q_proj.weight", {queries, spec.hidden}, Split::rows);
  weights.k = read("k_proj.weight", {keys, spec.hidden}, Split::rows);
  weights.v = read("v_proj.weight", {keys, spec.hidden}, Split::rows);
  weights.o = read("o_proj.weight", {spec.hidden, queries}, Split::columns);
  if (spec.query_key_norm) {
    weights.q_norm = read("q_norm.weight", {spec.head_dim}, Split::none);
    weights.k_norm = read("k_norm.weight", {spec.head_dim}, Split::none);
  }
  return weights;
}

BlockWeights load_block(const Checkpoint& checkpoint, const ModelSpec& spec, int64_t layer, const Placement& placement) {
  const auto read = [&](const char* name, const Shape& shape, Split split) {
    return read_split(checkpoint, layer_prefix(layer) + name, shape, split, placement);
  };
  return {.input_norm = read("input_layernorm.weight", {spec.hidden}, Split::none),
          .post_norm = read("post_attention_layernorm.weight", {spec.hidden}, Split::none),
          .mlp = {.gate = read("mlp.gate_proj.weight", {spec.intermediate, spec.hidden}, Split::rows),
                  .up = read("mlp.up_proj.weight", {spec.intermediate, spec.hidden}, Split::rows),
                  .down = read("mlp.down_proj.weight", {spec.hidden, spec.intermediate}, Split::columns)}};
}

EmbeddingWeights load_embedding(const Checkpoint& checkpoint, const ModelSpec& spec, const Placement& placement) {
  return {read_split(checkpoint, "model.embed_tokens.weight", {spec.vocabulary, spec.hidden}, Split::rows, placement)};
}

HeadWeights load_head(const Checkpoint& checkpoint, const ModelSpec& spec, const Placement& placement,
                      const EmbeddingWeights* tied) {
  return {.norm = read_split(checkpoint, "model.norm.weight", {spec.hidden}, Split::none, placement),
          .output = tied != nullptr
                        ? tied->tokens
                        : read_split(checkpoint, "lm_head.weight", {spec.vocabulary, spec.hidden}, Split::rows, placement)};
}

Parameters parameters_of(const AttentionWeights& weights, int64_t layer) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  Parameters parameters = {{prefix + "q_proj.weight", weights.q, Split::rows},
                           {prefix + "k_proj.weight", weights.k, Split::rows},
                           {prefix + "v_proj.weight", weights.v, Split::rows},
                           {prefix + "o_proj.weight", weights.o, Split::columns}};
  if (weights.q_norm.defined()) {
    parameters.push_back({prefix + "q_norm.weight", weights.q_norm, Split::none, /*partial_gradient=*/true});
    parameters.push_back({prefix + "k_norm.weight", weights.k_norm, Split::none, /*partial_gradient=*/true});
  }
  return parameters;
}

Parameters parameters_of(const BlockWeights& weights, int64_t layer) {
  const std::string prefix = layer_prefix(layer);
  return {{prefix + "input_layernorm.weight", weights.input_norm, Split::none},
          {prefix + "post_attention_layernorm.weight", weights.post_norm, Split::none},
          {prefix + "mlp.gate_proj.weight", weights.mlp.gate, Split::rows},
          {prefix + "mlp.up_proj.weight", weights.mlp.up, Split::rows},
          {prefix + "mlp.down_proj.weight", weights.mlp.down, Split::columns}};
}

Parameters parameters_of(const EmbeddingWeights& weights) {
  return {{"model.embed_tokens.weight", weights.tokens, Split::rows}};
}

Parameters parameters_of(const HeadWeights& weights, bool tied) {
  Parameters parameters = {{"model.norm.weight", weights.norm, Split::none}};
  if (!tied) parameters.push_back({"lm_head.weight", weights.output, Split::rows});
  return parameters;
}

void read_into(const Parameters& parameters, const Checkpoint& checkpoint, const Placement& placement) {
  const c10::NoGradGuard no_gradient;
  for (const Parameter& parameter : parameters) {
    Shape global = parameter.value.sizes().vec();
    if (parameter.split != Split::none) global[parameter.split == Split::rows ? 0 : 1] *= placement.shard_size;
    parameter.value.copy_(read_split(checkpoint, parameter.name, global, parameter.split, placement));
  }
}

}  // namespace flashmorph
