#include "core/mixer/lightning.h"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/mixer/branch_with.h"
#include "core/mixer/decay.h"
#include "core/mixer/initial.h"
#include "core/model/attention.h"
#include "core/ops/gated_norm.h"
#include "core/ops/linear_attention.h"
#include "core/ops/norm.h"
#include "core/ops/projection.h"
#include "core/ops/tensor_parallel.h"

// Lightning attention's branch: projections, RMSNorm of queries and keys per head, RoPE, the recurrence with a constant
// decay per head, RMSNorm of the output, a sigmoid gate, the output projection.
// Letters: B batch, T tokens, D hidden, H this rank's heads, K head dim.

namespace flashmorph {

std::string_view lightning_code();

namespace {

struct Weights {
  AttentionWeights heads;  // q, k, v [H*K, D], o [D, H*K], q_norm, k_norm [K]
  at::Tensor z;            // [H*K, D]
  at::Tensor o_norm;       // [H*K]

  template <class Self, class Visit>
  static void each(Self& w, Visit visit) {
    each_attention_weight(w.heads, visit);
    visit("z_proj.weight", w.z, Split::rows, false);
    visit("o_norm.weight", w.o_norm, Split::rows, false);
  }
};

class LightningBranch : public BranchWith<LightningBranch, Weights> {
 public:
  LightningBranch(const BranchContext& context, const AttentionWeights& teacher)
      : BranchWith(context), settings_(context.mixer.own.of<LightningSettings>()), shard_(&context.shard) {
    const auto options = teacher.q.options().requires_grad(false);
    const OwnHeads own(context);
    const int64_t width = own.count * spec_.head_dim;
    weights_.heads = expanded(teacher, spec_);
    for (at::Tensor* norm : {&weights_.heads.q_norm, &weights_.heads.k_norm})
      if (!norm->defined()) *norm = at::ones({spec_.head_dim}, options);
    weights_.z = uniform_rows(context, /*stream=*/0, own.first * spec_.head_dim, width, spec_.hidden);
    weights_.o_norm = at::ones({width}, options);
    const std::vector<double> decays = log_decays(settings_.decay, spec_.heads, layer_, spec_.layers);
    log_decay_H_ = at::tensor(decays, at::kDouble).narrow(0, own.first, own.count).to(context.placement.device);
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    const auto [qkv, others] =
        queries_keys_values_beside(x_BTD, weights_.heads, {weights_.z}, spec_, positions, mixer_.rope);
    const auto [q, k, v] = qkv;
    const auto [o_BTHK, state] =
        lightning_attention(q, k, v, log_decay_H_, state_of(cache), positions.documents, scale(), mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    return project(normed_and_gated(o_BTHK, others[0]), weights_.heads.o);
  }

 private:
  at::Tensor normed_and_gated(const at::Tensor& o_BTHK, const at::Tensor& z_BTC) const {
    const bool by_head = settings_.output_norm == "head";
    if (!by_head && shard_->size() > 1) return normed_over_all(o_BTHK) * at::sigmoid(z_BTC);
    const at::Tensor normed_apart = by_head ? o_BTHK : o_BTHK.flatten(2, 3).unsqueeze(2);
    return gated_rms_norm(normed_apart, weights_.o_norm, z_BTC, spec_.norm_epsilon, /*swish=*/false);
  }

  // RMSNorm over all heads of the model: the sum of squares crosses the shards.
  at::Tensor normed_over_all(const at::Tensor& o_BTHK) const {
    const at::Tensor o_BTC = o_BTHK.flatten(2, 3);
    const auto channels = static_cast<double>(spec_.heads * spec_.head_dim);
    // Every shard's loss depends on the whole sum, so its gradient is summed on the way back as well.
    const at::Tensor squares =
        copy_to_shards(sum_over_shards(o_BTC.square().sum(-1, /*keepdim=*/true), *shard_), *shard_);
    return o_BTC * (squares / channels + spec_.norm_epsilon).rsqrt() * weights_.o_norm;
  }

  LightningSettings settings_;
  Shard* shard_;
  at::Tensor log_decay_H_;  // this rank's heads, by their global number
};

// Loaders differ in what a rule's name means, so the numbers themselves are written.
nlohmann::ordered_json facts(const MixerSection& mixer, const ModelSpec& model) {
  nlohmann::ordered_json by_layer = nlohmann::ordered_json::array();
  for (int64_t layer = 0; layer < model.layers; ++layer)
    by_layer.push_back(log_decays(mixer.own.of<LightningSettings>().decay, model.heads, layer, model.layers));
  return {{"log_decay", by_layer}};
}

[[maybe_unused]] const bool registered = register_branch<LightningSettings>(
    "lightning", {.make = make<LightningBranch>, .python = lightning_code, .facts = facts});

}  // namespace
}  // namespace flashmorph
