#include <ATen/ATen.h>

#include "core/mixer/branch_with.h"
#include "core/mixer/convolved.h"
#include "core/mixer/initial.h"
#include "core/model/attention.h"
#include "core/ops/activation.h"
#include "core/ops/linear_attention.h"
#include "core/ops/norm.h"
#include "core/ops/projection.h"

// Mamba-2's branch (arXiv 2405.21060) in exactly the shape of the granitemoehybrid layer it is exported as, a group a
// head. In its words C are the queries, B the keys and x the values:
//   q, k, v = silu(short convolution(projection) + bias); no rotation, no norm
//   dt = softplus(dt x + dt_bias);  log-decay = -exp(A_log) dt;  the state is written with dt v
//   y = out(RMSNorm((o + D v) silu(z x)))
// Letters: B batch, T tokens, D hidden, H this rank's heads, K head dim, W taps of the convolution.

namespace flashmorph {

std::string_view mamba2_code();

namespace {

struct Weights {
  at::Tensor q, k, v, z;              // [H*K, D]
  at::Tensor dt;                      // [H, D]
  at::Tensor q_conv, k_conv, v_conv;  // [H*K, W], the last tap is the token itself
  at::Tensor q_bias, k_bias, v_bias;  // [H*K], of the convolutions
  at::Tensor A_log, dt_bias, D;       // [H]
  at::Tensor norm;                    // [H*K]
  at::Tensor out;                     // [D, H*K]

  template <class Self, class Visit>
  static void each(Self& w, Visit visit) {
    visit("q_proj.weight", w.q, Split::rows, false);
    visit("k_proj.weight", w.k, Split::rows, false);
    visit("v_proj.weight", w.v, Split::rows, false);
    visit("z_proj.weight", w.z, Split::rows, false);
    visit("dt_proj.weight", w.dt, Split::rows, false);
    visit("q_conv.weight", w.q_conv, Split::rows, false);
    visit("k_conv.weight", w.k_conv, Split::rows, false);
    visit("v_conv.weight", w.v_conv, Split::rows, false);
    visit("q_conv.bias", w.q_bias, Split::rows, false);
    visit("k_conv.bias", w.k_bias, Split::rows, false);
    visit("v_conv.bias", w.v_bias, Split::rows, false);
    visit("A_log", w.A_log, Split::rows, false);
    visit("dt_bias", w.dt_bias, Split::rows, false);
    visit("D", w.D, Split::rows, false);
    visit("norm.weight", w.norm, Split::rows, false);
    visit("out_proj.weight", w.out, Split::columns, false);
  }
};

class Mamba2Branch : public BranchWith<Mamba2Branch, Weights> {
 public:
  Mamba2Branch(const BranchContext& context, const AttentionWeights& teacher) : BranchWith(context) {
    const auto options = teacher.q.options().requires_grad(false);
    const OwnHeads own(context);
    const int64_t width = own.count * spec_.head_dim;
    const AttentionWeights heads = expanded(teacher, spec_);
    const auto or_zeros = [&](const at::Tensor& bias) { return bias.defined() ? bias : at::zeros({width}, options); };
    weights_.q = heads.q;
    weights_.k = heads.k;
    weights_.v = heads.v;
    weights_.out = heads.o;
    // Taps that are a delta pass the teacher's biases on.
    weights_.q_bias = or_zeros(heads.q_bias);
    weights_.k_bias = or_zeros(heads.k_bias);
    weights_.v_bias = or_zeros(heads.v_bias);
    for (at::Tensor* taps : {&weights_.q_conv, &weights_.k_conv, &weights_.v_conv}) *taps = delta_taps(width, options);
    weights_.z = uniform_rows(context, /*stream=*/1, own.first * spec_.head_dim, width, spec_.hidden);
    weights_.dt = uniform_rows(context, /*stream=*/2, own.first, own.count, spec_.hidden);
    weights_.A_log = usual_A_log(context, /*stream=*/3);
    weights_.dt_bias = usual_dt_bias(context, /*stream=*/4);
    weights_.D = at::ones({own.count}, options);
    weights_.norm = at::ones({width}, options);
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    const Weights& w = weights_;
    const auto [q, k, v] =
        convolved_heads(x_BTD, {{{w.q, w.q_conv, w.q_bias}, {w.k, w.k_conv, w.k_bias}, {w.v, w.v_conv, w.v_bias}}},
                        spec_.head_dim, positions, cache);
    const auto [dt_BTH, g_BTH] = steps_of(x_BTD, w.dt, w.dt_bias, w.A_log);
    const at::Tensor written = (exact(v) * dt_BTH.unsqueeze(-1)).to(v.scalar_type());
    const auto [o_BTHK, state] = scalar_gated_attention(q, k, written, g_BTH, state_of(cache), positions.documents,
                                                        /*scale=*/1.0, mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    const at::Tensor z_BTHK = project_heads(x_BTD, w.z, spec_.head_dim);
    const at::Tensor gated = swiglu(z_BTHK, o_BTHK + w.D.unsqueeze(-1) * v);
    const at::Tensor unit_K = at::ones({spec_.head_dim}, w.norm.options().requires_grad(false));
    return project(rms_norm(gated, unit_K, spec_.norm_epsilon).flatten(2, 3) * w.norm, w.out);
  }

  void start_decays(const at::Tensor& distance_H) override {
    start_steps(weights_.A_log, weights_.dt_bias, distance_H);
  }
};

[[maybe_unused]] const bool registered = register_branch("mamba2", {.make = make<Mamba2Branch>,
                                                                    .starts_from_data = true,
                                                                    .python = mamba2_code,
                                                                    .facts = convolved_facts,
                                                                    .cache_bytes = convolved_cache_bytes});

}  // namespace
}  // namespace flashmorph
