#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/ops/chunks.h"
#include "core/ops/small_products.h"
#include "core/ops/sub_chunks.h"

// gated_linear_attention of linear_attention.h: matrix products in ATen between sub-chunks and chunks, sub_chunks.h
// inside a sub-chunk. All decay factors are products of exp(g), never quotients. Letters: B batch, T tokens, H heads, K
// key dim, V value dim, N chunks, C tokens a chunk, G = B*H*N, I sub-chunks.

namespace flashmorph {
namespace {

using Optional = std::optional<at::Tensor>;

// What one chunk's tokens do to each other and to its state. With w_I the whole decay of sub-chunk I, the keys are
// carried from sub-chunk to sub-chunk: carried = k decayed to the beginning of I; after the last one, to the chunk's
// end.
struct Intra {
  at::Tensor q, k, a;                 // [G, C, K], a = exp(g)
  SubChunkDecays decays;              // within sub-chunks
  at::Tensor scores_GCC;              // A_ij = q_i . (k_j decayed to i), j <= i
  at::Tensor q_down_GCK;              // queries decayed from the chunk's beginning
  at::Tensor k_tail_GCK;              // keys decayed to the chunk's end
  std::vector<at::Tensor> whole_I;    // w_I, [G, 1, K]
  std::vector<at::Tensor> before_I;   // w_0 .. w_{I-1}, [G, 1, K]
  std::vector<at::Tensor> carried_I;  // [G, tokens before I, K], when kept for the backward pass
  at::Tensor whole_GK;                // of the chunk, [G, 1, K]

  Intra(const at::Tensor& q_GCK, const at::Tensor& k_GCK, const at::Tensor& g_GCK, bool keep)
      : q(q_GCK), k(k_GCK), a(g_GCK.exp()), decays(sub_chunk_decays(a)) {
    const int64_t G = q.size(0), C = q.size(1);
    scores_GCC = at::zeros({G, C, C}, q.options());
    add_diagonal_scores(q, k, a, scores_GCC);
    q_down_GCK = q * decays.up_GCK;
    k_tail_GCK = at::empty_like(k);
    whole_GK = at::ones({G, 1, q.size(2)}, q.options());
    for (int64_t first = 0; first < C; first += kSubChunk) {
      const int64_t rows = rows_from(first);
      const auto own = [&](const at::Tensor& x) { return x.narrow(1, first, rows); };
      at::Tensor q_here = own(q_down_GCK), carried = k_tail_GCK.narrow(1, 0, first);
      whole_I.push_back(decays.up_GCK.narrow(1, first + rows - 1, 1));
      before_I.push_back(whole_GK);
      if (first > 0) own(scores_GCC).narrow(2, 0, first).copy_(batched_product(q_here, carried.transpose(1, 2)));
      if (keep) carried_I.push_back(carried.clone());
      q_here.mul_(whole_GK);
      carried.mul_(whole_I.back());
      own(k_tail_GCK).copy_(own(k)).mul_(own(decays.rest_GCK));
      whole_GK = whole_GK * whole_I.back();
    }
  }

  int64_t rows_from(int64_t first) const { return std::min(kSubChunk, q.size(1) - first); }
};

struct IntraGradients {
  at::Tensor dq, dk, dg;  // [G, C, K]
};

// Walks the construction of Intra back. dq_down, dk_tail, d_scores: gradients of its results; d_log_whole: of the
// logarithm of the chunk's whole decay, [G, 1, K].
IntraGradients intra_backward(const Intra& intra, const at::Tensor& dq_down_GCK, at::Tensor dk_tail_GCK,
                              const at::Tensor& d_scores_GCC, const at::Tensor& d_log_whole_GK) {
  const at::Tensor &up = intra.decays.up_GCK, &rest = intra.decays.rest_GCK;
  const auto sub_chunks = static_cast<int64_t>(intra.whole_I.size());
  IntraGradients out{at::empty_like(intra.q), at::empty_like(intra.k), at::empty_like(intra.q)};
  at::Tensor outer = at::empty({intra.q.size(0), sub_chunks, intra.q.size(2)}, intra.q.options());
  at::Tensor later = d_log_whole_GK;  // what reads through the whole decays of the sub-chunks before this one
  for (int64_t I = sub_chunks - 1; I >= 0; --I) {
    const int64_t first = I * kSubChunk, rows = intra.rows_from(first);
    const auto own = [&](const at::Tensor& x) { return x.narrow(1, first, rows); };
    at::Tensor d_carried = dk_tail_GCK.narrow(1, 0, first), dq_here = own(out.dq), outer_here = outer.narrow(1, I, 1);
    at::mul_out(dq_here, own(dq_down_GCK), intra.before_I[I]);
    outer_here.copy_(later);
    const at::Tensor q_up = own(intra.q) * own(up);
    later = later + (q_up * dq_here).sum(1, /*keepdim=*/true);
    if (first > 0) {
      const at::Tensor &carried = intra.carried_I[I], dA = own(d_scores_GCC).narrow(2, 0, first);
      d_carried.mul_(intra.whole_I[I]);
      outer_here.add_((carried * d_carried).sum(1, /*keepdim=*/true));
      add_batched_product(d_carried, dA.transpose(1, 2), q_up);
      add_batched_product(dq_here, dA, carried);
    }
    dq_here.mul_(own(up));
    own(out.dk).copy_(own(dk_tail_GCK)).mul_(own(rest));
  }
  diagonal_backward(intra.q, intra.k, intra.a, d_scores_GCC, outer, out.dq, out.dk, out.dg);
  return out;
}

// A call's tensors in chunks, in the dtype it is computed in, and the states before each chunk and after each sequence.
struct Call {
  Chunks chunks;
  int64_t B, H;
  at::Tensor v_GCV;
  Intra intra;
  at::Tensor whole_BHNK1;
  at::Tensor before_GKV, final_SHKV;

  // S = diag(w) S + added
  auto advance_by(const at::Tensor& added_BHNKV) const {
    return [&whole = whole_BHNK1, &added_BHNKV](int64_t n, at::Tensor& state) {
      state.mul_(whole.select(2, n)).add_(added_BHNKV.select(2, n));
    };
  }

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
       const Optional& initial, const Optional& documents, int64_t chunk, bool keep)
      : chunks(q_BTHK.size(0), q_BTHK.size(1), chunk, documents),
        B(q_BTHK.size(0)),
        H(q_BTHK.size(2)),
        v_GCV(split(v_BTHV)),
        intra(split(q_BTHK), split(k_BTHK), split(g_BTHK.to(v_GCV.scalar_type())), keep),
        whole_BHNK1(unflat(intra.whole_GK.transpose(1, 2))) {
    const at::Tensor added = unflat(batched_product(intra.k_tail_GCK.transpose(1, 2), v_GCV));
    const auto [before, final_state] = chunks.forwards(initial, added.select(2, 0), advance_by(added));
    before_GKV = flat(before);
    final_SHKV = final_state;
  }

  at::Tensor split(const at::Tensor& x) const { return flat(chunks.split(x.to(at::toOpMathType(x.scalar_type())))); }
  at::Tensor unflat(const at::Tensor& x) const { return x.unflatten(0, {B, H, chunks.count()}); }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& g_BTHK, const Optional& initial, const Optional& documents,
                                           double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, chunk, /*keep=*/false);
  at::Tensor o = batched_product(call.intra.scores_GCC, call.v_GCV);
  add_batched_product(o, call.intra.q_down_GCK, call.before_GKV);
  return {call.chunks.join(call.unflat(o.mul_(scale))).to(v_BTHV.scalar_type()), call.final_SHKV};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, chunk, /*keep=*/true);
  const Intra& intra = call.intra;
  const at::Tensor dO = call.split(d_output_BTHV) * scale;

  const at::Tensor read = call.unflat(batched_product(intra.q_down_GCK.transpose(1, 2), dO));
  const auto [d_after, d_initial] = call.chunks.backwards(d_final, read.select(2, 0), call.advance_by(read));
  const at::Tensor d_after_GKV = flat(d_after);

  at::Tensor dv = batched_product(intra.scores_GCC.transpose(1, 2), dO);
  add_batched_product(dv, intra.k_tail_GCK, d_after_GKV);
  const at::Tensor d_log_whole = (call.before_GKV * d_after_GKV).sum(2).unsqueeze(1) * intra.whole_GK;
  const IntraGradients d = intra_backward(intra, batched_product(dO, call.before_GKV.transpose(1, 2)),
                                          batched_product(call.v_GCV, d_after_GKV.transpose(1, 2)),
                                          batched_product(dO, call.v_GCV.transpose(1, 2)), d_log_whole);
  const auto joined = [&](const at::Tensor& x, const at::Tensor& like) {
    return call.chunks.join(call.unflat(x)).to(like.scalar_type());
  };
  return {joined(d.dq, q_BTHK), joined(d.dk, k_BTHK), joined(dv, v_BTHV), joined(d.dg, g_BTHK), d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("gated_linear_attention", forward);
  library.impl("gated_linear_attention_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {  // the same tensors, without values
  library.impl("gated_linear_attention", forward);
  library.impl("gated_linear_attention_backward", backward);
}

}  // namespace flashmorph
