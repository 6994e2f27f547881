#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "core/ops/chunk_pairs.h"
#include "core/ops/chunks.h"
#include "core/ops/small_products.h"

// gated_delta_rule of linear_attention.h in ATen: inside a chunk the writes u~ solve a unit lower triangular system
// (the WY/UT form of arXiv 2412.06464). Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens
// a chunk, G = B*H*N. b_i = g_1 + .. + g_i in a chunk; gam_i = exp(b_i), tail_i = exp(b_C - b_i), Gam_ij = exp(b_i -
// b_j) for j <= i, else 0.

namespace flashmorph {
namespace {

using Optional = std::optional<at::Tensor>;

// (I + M)^-1 x or (I + M)^-T x for a strictly lower M.
at::Tensor solve(const at::Tensor& M_GCC, const at::Tensor& x, bool transposed = false) {
  return at::linalg_solve_triangular(transposed ? M_GCC.transpose(1, 2) : M_GCC, x, /*upper=*/transposed, /*left=*/true,
                                     /*unitriangular=*/true);
}

// A call's tensors in chunks, in the dtype it is computed in.
struct Call {
  Chunks chunks;
  int64_t B, H;
  at::Tensor q, k, v;                // [G, C, K or V]
  at::Tensor beta;                   // [G, C, 1]
  at::Tensor gam, tail, Gam, whole;  // [G, C, 1], [G, C, 1], [G, C, C], [G, 1, 1]
  at::Tensor kk, M;                  // [G, C, C]: k_i . k_j, and beta_i Gam_ij k_i . k_j for j < i
  at::Tensor k_tail, minus_W;        // [G, C, K]: tail k, and -W = -(I + M)^-1 beta gam k
  at::Tensor written;                // [G, C, V]: u~ = (I + M)^-1 beta (v - gam S^T k), what each token adds along k
  at::Tensor before_GKV, final_SHKV;

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
       const at::Tensor& beta_BTH, const Optional& initial, const Optional& documents, int64_t chunk)
      : chunks(q_BTHK.size(0), q_BTHK.size(1), chunk, documents),
        B(q_BTHK.size(0)),
        H(q_BTHK.size(2)),
        q(split(q_BTHK)),
        k(split(k_BTHK)),
        v(split(v_BTHV)),
        beta(split(beta_BTH.unsqueeze(-1).to(q.scalar_type()))) {
    set_decays(g_BTH);
    kk = batched_product(k, k.transpose(1, 2));
    M = (kk * Gam).mul_(beta).tril_(-1);
    k_tail = k * tail;
    const int64_t K = k.size(2), V = v.size(2);
    const at::Tensor solved = solve(M, at::cat({k * (beta * gam), v * beta}, 2));
    minus_W = solved.narrow(2, 0, K).neg();
    written = solved.narrow(2, K, V).contiguous();
    const at::Tensor like = at::empty({B, H, K, V}, k.options());
    const auto [before, final_state] = chunks.forwards(initial, like, [&](int64_t n, at::Tensor& state_BHKV) {
      at::Tensor state = state_BHKV.flatten(0, 1), u = of_chunk(written, n);
      add_batched_product(u, of_chunk(minus_W, n), state);
      state.mul_(of_chunk(whole, n));
      add_batched_product(state, of_chunk(k_tail, n).transpose(1, 2), u);
    });
    before_GKV = flat(before);
    final_SHKV = final_state;
  }

  at::Tensor split(const at::Tensor& x) const { return flat(chunks.split(x.to(at::toOpMathType(x.scalar_type())))); }
  at::Tensor unflat(const at::Tensor& x) const { return x.unflatten(0, {B, H, chunks.count()}); }
  at::Tensor of_chunk(const at::Tensor& x, int64_t n) const { return unflat(x).select(2, n).flatten(0, 1); }

 private:
  // In float64: the differences of sums are small where the sums are not.
  void set_decays(const at::Tensor& g_BTH) {
    const at::Tensor g = g_BTH.unsqueeze(-1).to(at::kDouble).clamp_min(kForgotten);
    const at::Tensor b = flat(chunks.split(g)).cumsum(1), last = b.narrow(1, b.size(1) - 1, 1);
    const auto factor = [&](const at::Tensor& exponent) { return exponent.to(q.scalar_type()).exp(); };
    gam = factor(b);
    tail = factor(last - b);
    whole = factor(last);
    Gam = decay_table(b.squeeze(2).contiguous(), q.scalar_type());
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& g_BTH, const at::Tensor& beta_BTH, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents, chunk);
  at::Tensor o = batched_product(batched_product(call.q, call.k.transpose(1, 2)).mul_(call.Gam), call.written);
  add_batched_product(o, call.q * call.gam, call.before_GKV);
  return {call.chunks.join(call.unflat(o.mul_(scale))).to(v_BTHV.scalar_type()), call.final_SHKV};
}

// With Y = (I + M)^-T d_written no gradient of the inverse is formed: dM = -Y written^T.
std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
                                 const at::Tensor& beta_BTH, const Optional& initial, const Optional& documents,
                                 double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents, chunk);
  const at::Tensor &q = call.q, &k = call.k, &v = call.v, &beta = call.beta, &gam = call.gam, &tail = call.tail;
  const at::Tensor dO = call.split(d_output_BTHV) * scale;
  const at::Tensor q_gam = q * gam, qk = batched_product(q, k.transpose(1, 2));

  const at::Tensor d_written =
      batched_product((qk * call.Gam).transpose(1, 2), dO);  // from inside the chunk; the walk adds the rest
  const at::Tensor read = batched_product(q_gam.transpose(1, 2), dO);
  const at::Tensor like = at::empty({call.B, call.H, k.size(2), v.size(2)}, k.options());
  const auto [d_after, d_initial] = call.chunks.backwards(d_final, like, [&](int64_t n, at::Tensor& d_state_BHKV) {
    at::Tensor d_state = d_state_BHKV.flatten(0, 1), du = call.of_chunk(d_written, n);
    add_batched_product(du, call.of_chunk(call.k_tail, n), d_state);
    d_state.mul_(call.of_chunk(call.whole, n)).add_(call.of_chunk(read, n));
    add_batched_product(d_state, call.of_chunk(call.minus_W, n).transpose(1, 2), du);
  });
  const at::Tensor d_after_GKV = flat(d_after);

  const at::Tensor Y = solve(call.M, d_written, /*transposed=*/true).contiguous();
  const at::Tensor through_q = batched_product(dO, call.before_GKV.transpose(1, 2));         // S dO_i
  const at::Tensor through_k = batched_product(Y, call.before_GKV.transpose(1, 2));          // S y_i
  const at::Tensor from_state = batched_product(call.written, d_after_GKV.transpose(1, 2));  // dS' u~_i
  const at::Tensor d_scores = batched_product(dO, call.written.transpose(1, 2)).mul_(call.Gam);
  const at::Tensor D = batched_product(Y, call.written.transpose(1, 2)).mul_(call.Gam).tril_(-1).neg_();
  const at::Tensor D_beta = D * beta;

  at::Tensor dq = through_q * gam;
  add_batched_product(dq, d_scores, k);
  at::Tensor dk = from_state * tail - through_k * (beta * gam);
  add_batched_product(dk, d_scores.transpose(1, 2), q);
  add_batched_product(dk, D_beta + D_beta.transpose(1, 2), k);
  const at::Tensor dv = Y * beta;
  const at::Tensor k_read = (k * through_k).sum(2, /*keepdim=*/true).mul_(gam);  // gam_i y_i . S^T k_i
  const at::Tensor d_beta = (Y * v).sum(2, /*keepdim=*/true) - k_read + (D * call.kk).sum(2, /*keepdim=*/true);

  // Every place where a decay acts, each term as it is: no difference of large sums.
  const at::Tensor reads = (q_gam * through_q).sum(2) - (beta * k_read).squeeze(2);
  const at::Tensor writes = (call.k_tail * from_state).sum(2);
  const at::Tensor carried = (call.before_GKV * d_after_GKV).sum({1, 2}).unsqueeze(1) * call.whole.squeeze(2);
  const at::Tensor dg = sum_across(d_scores, qk, D_beta, call.kk) + sum_from(reads) + sum_before(writes) + carried;

  const auto joined = [&](const at::Tensor& x, const at::Tensor& like) {
    return call.chunks.join(call.unflat(x)).to(like.scalar_type());
  };
  return {joined(dq, q_BTHK),
          joined(dk, k_BTHK),
          joined(dv, v_BTHV),
          joined(dg.unsqueeze(2), g_BTH).squeeze(3),
          joined(d_beta, beta_BTH).squeeze(3),
          d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("gated_delta_rule", forward);
  library.impl("gated_delta_rule_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {  // the same tensors, without values
  library.impl("gated_delta_rule", forward);
  library.impl("gated_delta_rule_backward", backward);
}

}  // namespace flashmorph
