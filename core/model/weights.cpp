#include "core/model/weights.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/model/experts.h"

namespace flashmorph {

using Shape = std::vector<int64_t>;

namespace {

// Of this rank's slice, along the dim that is split.
int64_t rows_or_columns(const std::string& name, const Shape& global, Split split, const Placement& placement) {
  const int64_t whole = global[split == Split::rows ? 0 : 1];
  TORCH_CHECK(whole % placement.shard_size == 0, name, " does not split over ", placement.shard_size, " ranks");
  return whole / placement.shard_size;
}

// On the meta device nothing is read: a model that need not be there.
at::Tensor without_values(const std::string& name, Shape shape, Split split, const Placement& placement) {
  if (split != Split::none) shape[split == Split::rows ? 0 : 1] = rows_or_columns(name, shape, split, placement);
  return at::empty(shape, at::TensorOptions(placement.dtype).device(placement.device));
}

}  // namespace

at::Tensor read_split(const ModelFiles& files, const std::string& name, const Shape& global, Split split,
                      const Placement& placement) {
  if (placement.device.is_meta()) return without_values(name, global, split, placement);
  if (split == Split::none) return files.read(name, global, placement.dtype, placement.device);
  const int64_t dim = split == Split::rows ? 0 : 1, each = rows_or_columns(name, global, split, placement);
  return files.read_slice(name, global, placement.dtype, dim, placement.shard_rank * each, each, placement.device);
}

namespace {

// More ranks than kv heads: so many neighbours hold the same one.
int64_t kv_replicas(const ModelSpec& spec, const Placement& placement) {
  return std::max<int64_t>(1, placement.shard_size / spec.kv_heads);
}

// The slices of this tensor are fewer than the ranks: neighbours share.
Placement shared_by(int64_t replicas, Placement placement) {
  placement.shard_rank /= replicas;
  placement.shard_size /= replicas;
  return placement;
}

WholeBias load_whole_bias(const ModelFiles& files, const std::string& name, const ModelSpec& spec,
                          const Placement& placement) {
  return {read_split(files, name, {spec.hidden}, Split::none, placement), placement.shard_rank == 0};
}

}  // namespace

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

AttentionWeights load_attention(const ModelFiles& files, const ModelSpec& spec, int64_t layer,
                                const Placement& placement) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  const int64_t queries = spec.heads * spec.head_dim, keys = spec.kv_heads * spec.head_dim;
  const auto read = [&](const char* name, const Shape& shape, Split split, int64_t replicas = 1) {
    return read_split(files, prefix + name, shape, split, shared_by(replicas, placement));
  };
  AttentionWeights weights;
  weights.kv_replicas = kv_replicas(spec, placement);
  weights.q = read("q_proj.weight", {queries, spec.hidden}, Split::rows);
  weights.k = read("k_proj.weight", {keys, spec.hidden}, Split::rows, weights.kv_replicas);
  weights.v = read("v_proj.weight", {keys, spec.hidden}, Split::rows, weights.kv_replicas);
  weights.o = read("o_proj.weight", {spec.hidden, queries}, Split::columns);
  if (spec.query_key_norm) {
    weights.q_norm = read("q_norm.weight", {spec.norm_over_heads ? queries : spec.head_dim}, Split::none);
    weights.k_norm = read("k_norm.weight", {spec.norm_over_heads ? keys : spec.head_dim}, Split::none);
  }
  if (spec.attention_bias) {
    weights.q_bias = read("q_proj.bias", {queries}, Split::rows);
    weights.k_bias = read("k_proj.bias", {keys}, Split::rows, weights.kv_replicas);
    weights.v_bias = read("v_proj.bias", {keys}, Split::rows, weights.kv_replicas);
  }
  if (spec.output_bias) weights.o_bias = load_whole_bias(files, prefix + "o_proj.bias", spec, placement);
  weights.rotates = spec.rotates(layer);
  return weights;
}

BlockWeights load_block(const ModelFiles& files, const ModelSpec& spec, int64_t layer, const Placement& placement) {
  const auto read = [&](const char* name, const Shape& shape, Split split) {
    return read_split(files, layer_prefix(layer) + name, shape, split, placement);
  };
  BlockWeights block;
  block.input_norm = read("input_layernorm.weight", {spec.hidden}, Split::none);
  block.post_norm = read("post_attention_layernorm.weight", {spec.hidden}, Split::none);
  const std::string mlp = layer_prefix(layer) + "mlp.";
  if (spec.is_sparse(layer)) {
    block.experts = load_experts(files, mlp, spec, placement);
  } else {
    block.mlp = load_mlp(files, mlp, spec, spec.intermediate, placement);
  }
  return block;
}

MlpWeights load_mlp(const ModelFiles& files, const std::string& prefix, const ModelSpec& spec, int64_t intermediate,
                    const Placement& placement) {
  const auto read = [&](const char* name, const Shape& shape, Split split) {
    return read_split(files, prefix + name, shape, split, placement);
  };
  MlpWeights weights;
  weights.gate = read("gate_proj.weight", {intermediate, spec.hidden}, Split::rows);
  weights.up = read("up_proj.weight", {intermediate, spec.hidden}, Split::rows);
  weights.down = read("down_proj.weight", {spec.hidden, intermediate}, Split::columns);
  if (spec.mlp_bias) {
    weights.gate_bias = read("gate_proj.bias", {intermediate}, Split::rows);
    weights.up_bias = read("up_proj.bias", {intermediate}, Split::rows);
    weights.down_bias = load_whole_bias(files, prefix + "down_proj.bias", spec, placement);
  }
  return weights;
}

EmbeddingWeights load_embedding(const ModelFiles& files, const ModelSpec& spec, const Placement& placement) {
  return {
      .tokens = read_split(files, "model.embed_tokens.weight", {spec.vocabulary, spec.hidden}, Split::rows, placement),
      .multiplier = spec.embedding_multiplier};
}

HeadWeights load_head(const ModelFiles& files, const ModelSpec& spec, const Placement& placement,
                      const EmbeddingWeights* tied) {
  return {.norm = read_split(files, "model.norm.weight", {spec.hidden}, Split::none, placement),
          .output = tied != nullptr
                        ? tied->tokens
                        : read_split(files, "lm_head.weight", {spec.vocabulary, spec.hidden}, Split::rows, placement)};
}

namespace {

void add(Parameters& parameters, const std::string& name, const WholeBias& bias) {
  if (bias.value.defined()) parameters.push_back({name, bias.value, Split::none, /*partial_gradient=*/true});
}

}  // namespace

Parameters parameters_of(const AttentionWeights& weights, int64_t layer) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  Parameters parameters = {{prefix + "q_proj.weight", weights.q, Split::rows},
                           {prefix + "k_proj.weight", weights.k, Split::rows, false, weights.kv_replicas},
                           {prefix + "v_proj.weight", weights.v, Split::rows, false, weights.kv_replicas},
                           {prefix + "o_proj.weight", weights.o, Split::columns}};
  if (weights.q_norm.defined()) {
    parameters.push_back({prefix + "q_norm.weight", weights.q_norm, Split::none, /*partial_gradient=*/true});
    parameters.push_back({prefix + "k_norm.weight", weights.k_norm, Split::none, /*partial_gradient=*/true});
  }
  if (weights.q_bias.defined()) {
    parameters.push_back({prefix + "q_proj.bias", weights.q_bias, Split::rows});
    parameters.push_back({prefix + "k_proj.bias", weights.k_bias, Split::rows, false, weights.kv_replicas});
    parameters.push_back({prefix + "v_proj.bias", weights.v_bias, Split::rows, false, weights.kv_replicas});
  }
  add(parameters, prefix + "o_proj.bias", weights.o_bias);
  return parameters;
}

Parameters parameters_of(const MlpWeights& weights, const std::string& prefix) {
  Parameters parameters = {{prefix + "gate_proj.weight", weights.gate, Split::rows},
                           {prefix + "up_proj.weight", weights.up, Split::rows},
                           {prefix + "down_proj.weight", weights.down, Split::columns}};
  if (weights.gate_bias.defined()) {
    parameters.push_back({prefix + "gate_proj.bias", weights.gate_bias, Split::rows});
    parameters.push_back({prefix + "up_proj.bias", weights.up_bias, Split::rows});
  }
  add(parameters, prefix + "down_proj.bias", weights.down_bias);
  return parameters;
}

Parameters parameters_of(const BlockWeights& weights, int64_t layer) {
  const std::string prefix = layer_prefix(layer);
  Parameters parameters = {{prefix + "input_layernorm.weight", weights.input_norm, Split::none},
                           {prefix + "post_attention_layernorm.weight", weights.post_norm, Split::none}};
  const std::string mlp = prefix + "mlp.";
  const Parameters more = weights.experts ? parameters_of(*weights.experts, mlp) : parameters_of(weights.mlp, mlp);
  parameters.insert(parameters.end(), more.begin(), more.end());
  return parameters;
}

Parameters parameters_of(const EmbeddingWeights& weights) {
  return {{"model.embed_tokens.weight", weights.tokens, Split::rows}};
}

Parameters parameters_of(const HeadWeights& weights, bool tied) {
  Parameters parameters = {{"model.norm.weight", weights.norm, Split::none}};
  if (!tied) parameters.push_back({"lm_head.weight", weights.output, Split::rows});
  return parameters;
}

void read_into(const Parameters& parameters, const ModelFiles& files, const Placement& placement) {
  const c10::NoGradGuard no_gradient;
  for (const Parameter& parameter : parameters) {
    const Placement here = shared_by(parameter.replicas, placement);
    Shape global = parameter.value.sizes().vec();
    if (parameter.split != Split::none) global[parameter.split == Split::rows ? 0 : 1] *= here.shard_size;
    parameter.value.copy_(read_split(files, parameter.name, global, parameter.split, here));
  }
}

}  // namespace flashmorph
