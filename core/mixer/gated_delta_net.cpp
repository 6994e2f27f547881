#include <ATen/ATen.h>

#include "core/mixer/branch_with.h"
#include "core/mixer/convolved.h"
#include "core/mixer/initial.h"
#include "core/model/attention.h"
#include "core/ops/gated_norm.h"
#include "core/ops/linear_attention.h"
#include "core/ops/norm.h"
#include "core/ops/projection.h"

// Gated DeltaNet's branch (arXiv 2412.06464) in exactly the shape of the qwen3_5_text layer it is exported as:
//   q, k, v = silu(short convolution(projection)); q, k scaled to length 1 per head; no rotation, no bias
//   beta = sigmoid(b x);  log-decay = -exp(A_log) softplus(a x + dt_bias);  y = out(RMSNorm(o) silu(z x))
// Letters: B batch, T tokens, D hidden, H this rank's heads, K head dim, W taps of the convolution.

namespace flashmorph {

std::string_view gated_delta_net_code();

namespace {

constexpr double kLengthEpsilon = 1e-6;  // of the L2 norm

struct Weights {
  at::Tensor q, k, v, z;              // [H*K, D]
  at::Tensor b, a;                    // [H, D]
  at::Tensor q_conv, k_conv, v_conv;  // [H*K, W], the last tap is the token itself
  at::Tensor A_log, dt_bias;          // [H]
  at::Tensor norm;                    // [K]
  at::Tensor out;                     // [D, H*K]

  template <class Self, class Visit>
  static void each(Self& w, Visit visit) {
    visit("q_proj.weight", w.q, Split::rows, false);
    visit("k_proj.weight", w.k, Split::rows, false);
    visit("v_proj.weight", w.v, Split::rows, false);
    visit("z_proj.weight", w.z, Split::rows, false);
    visit("b_proj.weight", w.b, Split::rows, false);
    visit("a_proj.weight", w.a, Split::rows, false);
    visit("q_conv.weight", w.q_conv, Split::rows, false);
    visit("k_conv.weight", w.k_conv, Split::rows, false);
    visit("v_conv.weight", w.v_conv, Split::rows, false);
    visit("A_log", w.A_log, Split::rows, false);
    visit("dt_bias", w.dt_bias, Split::rows, false);
    visit("norm.weight", w.norm, Split::none, true);
    visit("out_proj.weight", w.out, Split::columns, false);
  }
};

class GatedDeltaNetBranch : public BranchWith<GatedDeltaNetBranch, Weights> {
 public:
  GatedDeltaNetBranch(const BranchContext& context, const AttentionWeights& teacher) : BranchWith(context) {
    const auto options = teacher.q.options().requires_grad(false);
    const OwnHeads own(context);
    const int64_t width = own.count * spec_.head_dim;
    const AttentionWeights heads = expanded(teacher, spec_);
    weights_.q = heads.q;
    weights_.k = heads.k;
    weights_.v = heads.v;
    weights_.out = heads.o;
    weights_.z = uniform_rows(context, /*stream=*/1, own.first * spec_.head_dim, width, spec_.hidden);
    weights_.b = uniform_rows(context, /*stream=*/2, own.first, own.count, spec_.hidden);
    weights_.a = uniform_rows(context, /*stream=*/3, own.first, own.count, spec_.hidden);
    for (at::Tensor* taps : {&weights_.q_conv, &weights_.k_conv, &weights_.v_conv}) *taps = delta_taps(width, options);
    weights_.norm = at::ones({spec_.head_dim}, options);
    weights_.A_log = usual_A_log(context, /*stream=*/4);
    weights_.dt_bias = usual_dt_bias(context, /*stream=*/5);
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    const at::Tensor no_bias;
    const Weights& w = weights_;
    const auto [q, k, v] =
        convolved_heads(x_BTD, {{{w.q, w.q_conv, no_bias}, {w.k, w.k_conv, no_bias}, {w.v, w.v_conv, no_bias}}},
                        spec_.head_dim, positions, cache);
    const at::Tensor beta_BTH = at::sigmoid(exact(project(x_BTD, w.b)));
    const Steps steps = steps_of(x_BTD, w.a, w.dt_bias, w.A_log);
    const auto [o_BTHK, state] =
        gated_delta_rule(l2_norm(q, kLengthEpsilon), l2_norm(k, kLengthEpsilon), v, steps.log_decay_BTH, beta_BTH,
                         state_of(cache), positions.documents, scale(), mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    const at::Tensor z_BTC = project(x_BTD, w.z);
    return project(gated_rms_norm(o_BTHK, w.norm, z_BTC, spec_.norm_epsilon, /*swish=*/true), w.out);
  }

  void start_decays(const at::Tensor& distance_H) override {
    start_steps(weights_.A_log, weights_.dt_bias, distance_H);
  }
};

[[maybe_unused]] const bool registered = register_branch("gated_delta_net", {.make = make<GatedDeltaNetBranch>,
                                                                             .starts_from_data = true,
                                                                             .python = gated_delta_net_code,
                                                                             .facts = convolved_facts,
                                                                             .cache_bytes = convolved_cache_bytes});

}  // namespace
}  // namespace flashmorph
