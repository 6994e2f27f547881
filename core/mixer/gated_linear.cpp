#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/mixer/branch_with.h"
#include "core/mixer/initial.h"
#include "core/model/attention.h"
#include "core/ops/gated_norm.h"
#include "core/ops/linear_attention.h"
#include "core/ops/projection.h"

// Gated linear attention's branch (GLA, arXiv 2312.06635): projections, RMSNorm of queries and keys where the teacher
// has it, RoPE, the recurrence with a decay per channel read from the input through a low rank, RMSNorm of each head's
// output times silu of a gate, the output projection. Letters: B batch, T tokens, D hidden, H this rank's heads, K head
// dim, R rank of the decay.

namespace flashmorph {

std::string_view gated_linear_code();

namespace {

constexpr int64_t kRank = 16;          // R
constexpr double kGateDivisor = 16.0;  // log-decay = logsigmoid(.) / 16: slow to forget at the start

struct Weights {
  AttentionWeights heads;  // q, k, v [H*K, D], o [D, H*K], q_norm, k_norm [K]
  at::Tensor g;            // [H*K, D]
  at::Tensor decay_in;     // [R, D]: whole on every rank
  at::Tensor decay_out;    // [H*K, R]
  at::Tensor decay_bias;   // [H*K]
  at::Tensor o_norm;       // [K]

  template <class Self, class Visit>
  static void each(Self& w, Visit visit) {
    each_attention_weight(w.heads, visit);
    visit("g_proj.weight", w.g, Split::rows, false);
    visit("gk_proj.0.weight", w.decay_in, Split::none, true);
    visit("gk_proj.1.weight", w.decay_out, Split::rows, false);
    visit("gk_proj.1.bias", w.decay_bias, Split::rows, false);
    visit("o_norm.weight", w.o_norm, Split::none, true);
  }
};

class GatedLinearBranch : public BranchWith<GatedLinearBranch, Weights> {
 public:
  GatedLinearBranch(const BranchContext& context, const AttentionWeights& teacher) : BranchWith(context) {
    const OwnHeads own(context);
    const int64_t first = own.first * spec_.head_dim, width = own.count * spec_.head_dim;
    weights_.heads = expanded(teacher, spec_);
    weights_.g = uniform_rows(context, /*stream=*/1, first, width, spec_.hidden);
    weights_.decay_in = uniform_rows(context, /*stream=*/2, 0, kRank, spec_.hidden);
    weights_.decay_out = uniform_rows(context, /*stream=*/3, first, width, kRank);
    weights_.decay_bias = at::zeros({width}, teacher.q.options().requires_grad(false));
    weights_.o_norm = at::ones({spec_.head_dim}, teacher.q.options().requires_grad(false));
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    const auto [qkv, others] = queries_keys_values_beside(x_BTD, weights_.heads, {weights_.decay_in, weights_.g}, spec_,
                                                          positions, mixer_.rope);
    const auto [q, k, v] = qkv;
    const auto [o_BTHK, state] = gated_linear_attention(q, k, v, log_decay(others[0]), state_of(cache),
                                                        positions.documents, scale(), mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    return project(gated_rms_norm(o_BTHK, weights_.o_norm, others[1], spec_.norm_epsilon, /*swish=*/true),
                   weights_.heads.o);
  }

  // The b with logsigmoid(b) / 16 = log_decay, for all channels of a head.
  void start_decays(const at::Tensor& distance_H) override {
    const at::Tensor bias_H = -at::expm1(log_decay_of_distance(distance_H) * -kGateDivisor).log();
    weights_.decay_bias.detach().copy_(bias_H.repeat_interleave(spec_.head_dim));
  }

 private:
  at::Tensor log_decay(const at::Tensor& narrow_BTR) const {
    const at::Tensor logit = project_heads(narrow_BTR, weights_.decay_out, spec_.head_dim, weights_.decay_bias);
    return at::log_sigmoid(logit.to(at::toOpMathType(logit.scalar_type()))) / kGateDivisor;
  }
};

nlohmann::ordered_json facts(const MixerSection&, const ModelSpec&) {
  return {{"decay_rank", kRank}, {"decay_divisor", kGateDivisor}};
}

[[maybe_unused]] const bool registered = register_branch(
    "gla", {.make = make<GatedLinearBranch>, .starts_from_data = true, .python = gated_linear_code, .facts = facts});

}  // namespace
}  // namespace flashmorph
