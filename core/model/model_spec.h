#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/model/config_json.h"
#include "core/model/rope.h"

namespace flashmorph {

// The sparse feed-forward of a mixture of experts.
struct ExpertsSpec {
  int64_t count = 0;                // 0: every layer's feed-forward is dense
  int64_t per_token = 0;            // experts that a token goes to
  int64_t intermediate = 0;         // of one expert
  bool normalized = false;          // the chosen experts' weights add up to 1
  std::vector<bool> in_layer = {};  // which layers are sparse
};

// A decoder as config.json describes it: sizes, and the differences between families as data.
struct ModelSpec {
  std::string model_type;  // one of model_families()
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;  // of dense layers
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double norm_epsilon = 1e-6;
  Rope rope;
  std::vector<bool> no_rope;          // layers whose queries and keys are not rotated; empty: all are
  bool query_key_norm = false;        // RMSNorm of each head's queries and keys before the rotation
  bool norm_over_heads = false;       // that norm is over all heads at once (OLMo-2)
  bool norm_after = false;            // a layer's norms are of what attention and feed-forward give, not get (OLMo-2)
  bool attention_bias = false;        // of the queries, keys and values
  bool output_bias = false;           // of attention's output projection
  bool mlp_bias = false;              // of the feed-forward's three projections
  bool tied_embeddings = false;       // the output head is the embedding
  double embedding_multiplier = 1.0;  // Granite's four: of the embeddings,
  double residual_multiplier = 1.0;   // of what attention and feed-forward add,
  double attention_multiplier = 0.0;  // of the scores q k^T; 0: 1 / sqrt(head_dim),
  double logit_divisor = 1.0;         // and of the logits
  ExpertsSpec experts;

  // Reads and checks config.json; BadInput for an unknown model_type (naming the known ones), a missing or mistyped
  // key, sizes that do not fit each other, and settings whose numbers we would get wrong (sliding windows, rotary
  // embeddings that change with the length, other activations). Keys that transformers does not read in a family
  // count for nothing here either. What weights are stored may change the spec: see stored_model.h.
  static ModelSpec open(const std::filesystem::path& folder);
  static ModelSpec of(const ConfigJson& config);

  // BadInput at `key` when `tensor` ranks cannot split this model evenly; the message lists the sizes that can. With
  // more ranks than kv heads, neighbours hold the same kv head.
  void check_tensor_parallel(int64_t tensor, const std::string& key = "parallel.tensor") const;

  int64_t query_groups() const { return heads / kv_heads; }
  // Of the KV cache, a token and layer with full attention.
  int64_t kv_bytes(int64_t element_bytes) const { return 2 * kv_heads * head_dim * element_bytes; }
  bool is_sparse(int64_t layer) const { return experts.count > 0 && experts.in_layer[static_cast<size_t>(layer)]; }
  bool rotates(int64_t layer) const { return no_rope.empty() || !no_rope[static_cast<size_t>(layer)]; }
  double attention_scale() const {
    return attention_multiplier > 0.0 ? attention_multiplier : 1.0 / std::sqrt(static_cast<double>(head_dim));
  }
};

// The values of model_type that can be read.
std::vector<std::string> model_families();

}  // namespace flashmorph
