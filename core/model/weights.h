#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "core/io/model_files.h"
#include "core/model/model_spec.h"
#include "core/model/parameter.h"

namespace flashmorph {

// Where a rank's slice of a model lies, and as what it is held.
struct Placement {
  int64_t shard_rank = 0;  // place in the tensor group
  int64_t shard_size = 1;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

// The bias of a projection whose output the ranks add up: whole on every rank, added by the first alone.
struct WholeBias {
  at::Tensor value;  // [D], undefined: none
  bool is_added = true;

  at::Tensor here() const { return is_added ? value : at::Tensor(); }
};

// One rank's slices. Letters: D hidden, F intermediate, H heads, G kv heads, K head dim, R ranks (for k and v: at most
// G).
struct AttentionWeights {
  at::Tensor q;             // [H*K/R, D]
  at::Tensor k;             // [G*K/R, D]
  at::Tensor v;             // [G*K/R, D]
  at::Tensor o;             // [D, H*K/R]
  at::Tensor q_norm;        // [K], or [H*K] over all heads; undefined without query_key_norm
  at::Tensor k_norm;        // [K], or [G*K] over all heads
  at::Tensor q_bias;        // [H*K/R], undefined without attention_bias
  at::Tensor k_bias;        // [G*K/R]
  at::Tensor v_bias;        // [G*K/R]
  int64_t kv_replicas = 1;  // neighbouring ranks with the same k and v: R / G, when R exceeds G
  WholeBias o_bias = {};    // undefined without output_bias
  bool rotates = true;      // whether queries and keys are rotated in this layer
};

struct MlpWeights {
  at::Tensor gate;            // [F/R, D]
  at::Tensor up;              // [F/R, D]
  at::Tensor down;            // [D, F/R]
  at::Tensor gate_bias = {};  // [F/R], undefined without mlp_bias
  at::Tensor up_bias = {};    // [F/R]
  WholeBias down_bias = {};
};

struct ExpertWeights {  // every rank holds a slice of every expert
  at::Tensor router;    // [experts, D]
  std::vector<MlpWeights> experts;
};

struct BlockWeights {                    // everything of a layer but its attention
  at::Tensor input_norm;                 // [D], attention's
  at::Tensor post_norm;                  // [D], the feed-forward's
  MlpWeights mlp;                        // of a dense layer
  std::optional<ExpertWeights> experts;  // of a sparse one
};

struct EmbeddingWeights {
  at::Tensor tokens = {};   // [vocabulary/R, D]
  double multiplier = 1.0;  // of each row that is looked up
};

struct HeadWeights {
  at::Tensor norm;    // [D]
  at::Tensor output;  // [vocabulary/R, D]; the embedding's own tensor when tied
};

// Each reads this rank's slices from the weights (as stored_model.h names them); BadInput names the tensor that is
// missing, misshapen or not finite.
AttentionWeights load_attention(const ModelFiles&, const ModelSpec&, int64_t layer, const Placement&);
MlpWeights load_mlp(const ModelFiles&, const std::string& prefix, const ModelSpec&, int64_t intermediate,
                    const Placement&);
BlockWeights load_block(const ModelFiles&, const ModelSpec&, int64_t layer, const Placement&);
EmbeddingWeights load_embedding(const ModelFiles&, const ModelSpec&, const Placement&);
HeadWeights load_head(const ModelFiles&, const ModelSpec&, const Placement&, const EmbeddingWeights* tied);

// This rank's slice of a tensor whose global shape is known.
at::Tensor read_split(const ModelFiles&, const std::string& name, const std::vector<int64_t>& global, Split split,
                      const Placement&);

// The same tensors under their global names.
Parameters parameters_of(const AttentionWeights&, int64_t layer);
Parameters parameters_of(const MlpWeights&, const std::string& prefix);
Parameters parameters_of(const BlockWeights&, int64_t layer);
Parameters parameters_of(const EmbeddingWeights&);
Parameters parameters_of(const HeadWeights&, bool tied);

// Overwrites each parameter with this rank's slice of the checkpoint's tensor of the same name.
void read_into(const Parameters& parameters, const ModelFiles& files, const Placement& placement);

// "model.layers.3." for layer 3.
std::string layer_prefix(int64_t layer);

}  // namespace flashmorph
