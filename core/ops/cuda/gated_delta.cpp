#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "core/ops/cuda/beside.h"
#include "core/ops/cuda/chunking.h"
#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/gated_delta_kernels.h"
#include "core/ops/cuda/products.h"
#include "core/ops/cuda/rows.h"
#include "core/ops/cuda/tensors.h"

// gated_delta_rule of linear_attention.h on the card, in the form that gated_delta_cpu.cpp derives: batched matrix
// products of the inputs' dtype with float32 sums; the triangular inverse, decays, sums over pairs and the walk of the
// states are kernels. Gates, states and what is subtracted from something near to it are float32 at least.
// Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens a chunk, S sequences.

namespace flashmorph::cuda {
namespace {

using Optional = std::optional<at::Tensor>;

// A walk's states where it entered each chunk, what each token writes, and where the sequences ended.
struct Walked {
  at::Tensor entered_NHKV, written_NHCV, end_SHKV;
};

Walked walk_states(const Chunking& chunks, const at::Tensor& whole_NH, const at::Tensor& added_NHCV,
                   const at::Tensor& reading_NHCK, const at::Tensor& writing_NHCK, const at::Tensor& more_NHKV,
                   const Optional& start_SHKV, bool backwards) {
  const int64_t N = added_NHCV.size(0), H = added_NHCV.size(1), K = reading_NHCK.size(3), V = added_NHCV.size(3);
  Walked w{at::empty({N, H, K, V}, reading_NHCK.options()), at::empty(added_NHCV.sizes(), reading_NHCK.options()),
           start_SHKV ? start_SHKV->to(whole_NH.scalar_type()).clone(at::MemoryFormat::Contiguous)
                      : at::zeros({chunks.sequences(), H, K, V}, whole_NH.options())};
  walk_delta_states(element_of(reading_NHCK),
                    {.added_NHCV = added_NHCV.const_data_ptr(),
                     .reading_NHCK = reading_NHCK.const_data_ptr(),
                     .writing_NHCK = writing_NHCK.const_data_ptr(),
                     .more_NHKV = data_or_null(more_NHKV),
                     .whole_NH = whole_NH.const_data_ptr(),
                     .state_SHKV = w.end_SHKV.data_ptr(),
                     .entered_NHKV = w.entered_NHKV.data_ptr(),
                     .written_NHCV = w.written_NHCV.data_ptr()},
                    H, chunks.size(), K, V, chunks.table(), backwards, stream_of(reading_NHCK));
  return w;
}

struct Call {
  const c10::cuda::CUDAGuard guard;
  Chunking chunks;
  double scale;
  at::ScalarType exact, operand;  // dtypes
  at::Tensor q, k, v, beta;       // [N, H, C, K or V] and [N, H, C]
  at::Tensor b;                   // [N, H, C], float64
  at::Tensor gam, tail, whole;    // e^b, e^(b_C - b) and e^(b_C)
  at::Tensor kk, inverse;         // [N, H, C, C]
  at::Tensor q_reach, k_tail;     // scale gam q, tail k
  at::Tensor k_gone;              // -(I + M)^-1 beta gam k: what the tokens remove of a state that they find
  Walked states;

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
       const at::Tensor& beta_BTH, const Optional& initial, const Optional& documents, double scale, int64_t chunk)
      : guard(q_BTHK.device()),
        chunks(q_BTHK, std::min(chunk, kMostDeltaTokens), documents),
        scale(scale),
        exact(at::toOpMathType(q_BTHK.scalar_type())),
        operand(chunks.size() % kTile == 0 && q_BTHK.size(3) % kTile == 0 ? q_BTHK.scalar_type() : exact),
        q(packed(q_BTHK)),
        k(packed(k_BTHK)),
        v(packed(v_BTHV)),
        beta(packed_gate(beta_BTH)),
        b(packed_gate(g_BTH.clamp_min(kForgotten)).to(at::kDouble).cumsum(2)),
        gam(factor(b)),
        tail(factor(b.narrow(2, chunks.size() - 1, 1) - b)),
        whole(gam.select(2, chunks.size() - 1).contiguous()),
        kk(exact_product(k, flipped(k))),
        inverse(at::empty(kk.sizes(), k.options())),
        q_reach(scaled(q, gam * scale)),
        k_tail(scaled(k, tail)) {
    delta_inverse(type(), kk.const_data_ptr(), b.const_data_ptr<double>(), beta.const_data_ptr(), inverse.data_ptr(),
                  matrices(), chunks.size(), stream_of(k));
    k_gone = product(inverse, scaled(k, (beta * gam).neg_()));
    states = walk(exact_product(inverse, scaled(v, beta)), k_gone, k_tail, {}, initial, /*backwards=*/false);
  }

  Element type() const { return element_of(k); }
  int64_t matrices() const { return k.size(0) * k.size(1); }
  at::Tensor packed(const at::Tensor& x_BTHD) const { return chunks.packed(x_BTHD.to(operand)); }
  at::Tensor packed_gate(const at::Tensor& x_BTH) const {
    return chunks.packed(x_BTH.unsqueeze(3).to(exact)).squeeze(3);
  }
  at::Tensor factor(const at::Tensor& logarithm) const { return logarithm.to(exact).exp(); }
  at::Tensor empty_gate() const { return at::empty_like(beta); }

  at::Tensor scaled(const at::Tensor& x_NHCD, const at::Tensor& factor_NHC) const {
    at::Tensor y = at::empty_like(x_NHCD);
    scale_rows(type(), x_NHCD.const_data_ptr(), factor_NHC.const_data_ptr(), y.data_ptr(), factor_NHC.numel(),
               x_NHCD.size(3), stream_of(y));
    return y;
  }

  // scale Gam o (q k^T), from the products.
  at::Tensor scores(const at::Tensor& qk_NHCC) const {
    at::Tensor scores = at::empty(qk_NHCC.sizes(), k.options());
    decay_pairs(type(), qk_NHCC.const_data_ptr(), b.const_data_ptr<double>(), scale, scores.data_ptr(), matrices(),
                chunks.size(), stream_of(k));
    return scores;
  }

  Walked walk(const at::Tensor& added, const at::Tensor& reading, const at::Tensor& writing, const at::Tensor& more,
              const Optional& start, bool backwards) const {
    return walk_states(chunks, whole, added, reading, writing, more, start, backwards);
  }

  at::Tensor joined(const at::Tensor& x_NHCD, const at::Tensor& like) const {
    return chunks.unpacked(x_NHCD.to(like.scalar_type()));
  }
  at::Tensor joined_gate(const at::Tensor& x_NHC, const at::Tensor& like) const {
    return joined(x_NHC.unsqueeze(3), like).squeeze(3);
  }
};

std::tuple<at::Tensor, at::Tensor> forward_of_products(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                                       const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
                                                       const at::Tensor& beta_BTH, const Optional& initial,
                                                       const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents, scale, chunk);
  const at::Tensor scores = call.scores(exact_product(call.q, flipped(call.k)));
  const at::Tensor o = scaled_sum(1.0, call.q_reach, call.states.entered_NHKV, scores, call.states.written_NHCV);
  return {call.joined(o, v_BTHV), call.states.end_SHKV};
}

// The names of gated_delta_cpu.cpp: y = (I + M)^-T d_written, and no gradient of the inverse is formed.
std::vector<at::Tensor> backward_of_products(const at::Tensor& d_output_BTHV, const Optional& d_final,
                                             const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                             const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
                                             const at::Tensor& beta_BTH, const Optional& initial,
                                             const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents, scale, chunk);
  const at::Tensor &q = call.q, &k = call.k, &v = call.v, &b = call.b, &beta = call.beta;
  const at::Tensor &before = call.states.entered_NHKV, &written = call.states.written_NHCV;
  const at::Tensor dO = call.packed(d_output_BTHV);
  const at::Tensor qk = exact_product(q, flipped(k));

  // A walk back writes through k_gone what the walk forward read through it, and reads what that wrote.
  const Walked d_states = call.walk(exact_product(flipped(call.scores(qk)), dO), call.k_tail, call.k_gone,
                                    exact_product(flipped(call.q_reach), dO), d_final, /*backwards=*/true);
  const at::Tensor &d_after = d_states.entered_NHKV, &d_written = d_states.written_NHCV;
  const at::Tensor y = product(flipped(call.inverse), d_written);

  at::Tensor d_scores = at::empty_like(call.inverse), d_products = at::empty_like(call.inverse);
  at::Tensor d_beta = call.empty_gate(), across = call.empty_gate(), dg = call.empty_gate();
  {
    const at::Tensor reads = exact_product(dO, flipped(written)), solution = exact_product(y, flipped(written));
    delta_pair_gradients(call.type(),
                         {.reads = reads.const_data_ptr(),
                          .solution = solution.const_data_ptr(),
                          .qk = qk.const_data_ptr(),
                          .kk = call.kk.const_data_ptr(),
                          .beta_GC = beta.const_data_ptr(),
                          .b_GC = b.const_data_ptr<double>(),
                          .factor = scale,
                          .d_scores = d_scores.data_ptr(),
                          .d_products = d_products.data_ptr(),
                          .d_beta_GC = d_beta.data_ptr(),
                          .across_GC = across.data_ptr()},
                         call.matrices(), call.chunks.size(), stream_of(k));
  }

  at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  {
    const at::Tensor through_q = exact_product(dO, flipped(before)), through_k = exact_product(y, flipped(before));
    const at::Tensor from_state = exact_product(written, flipped(d_after)), reach = call.gam * scale;
    delta_token_gradients(call.type(),
                          {.q_GCK = q.const_data_ptr(),
                           .k_GCK = k.const_data_ptr(),
                           .v_GCV = v.const_data_ptr(),
                           .y_GCV = y.const_data_ptr(),
                           .before_GKV = before.const_data_ptr(),
                           .d_after_GKV = d_after.const_data_ptr(),
                           .through_q_GCK = through_q.const_data_ptr(),
                           .through_k_GCK = through_k.const_data_ptr(),
                           .from_state_GCK = from_state.const_data_ptr(),
                           .reach_GC = reach.const_data_ptr(),
                           .gam_GC = call.gam.const_data_ptr(),
                           .tail_GC = call.tail.const_data_ptr(),
                           .whole_G = call.whole.const_data_ptr(),
                           .beta_GC = beta.const_data_ptr(),
                           .across_GC = across.const_data_ptr(),
                           .dq_GCK = dq.data_ptr(),
                           .dk_GCK = dk.data_ptr(),
                           .dv_GCV = dv.data_ptr(),
                           .d_beta_GC = d_beta.data_ptr(),
                           .dg_GC = dg.data_ptr()},
                          call.matrices(), call.chunks.size(), q.size(3), v.size(3), stream_of(k));
  }
  flat(dq).baddbmm_(flat(d_scores), flat(k));
  flat(dk).baddbmm_(flat(flipped(d_scores)), flat(q)).baddbmm_(flat(d_products), flat(k));
  return {call.joined(dq, q_BTHK),
          call.joined(dk, k_BTHK),
          call.joined(dv, v_BTHV),
          call.joined_gate(dg, g_BTH),
          call.joined_gate(d_beta, beta_BTH),
          d_states.end_SHKV};
}

// A call in chunks of 64 tokens in bfloat16: what is done to each chunk before and after the walks is a kernel each.
// From prepare() on nothing but its kernels goes to the stream, so that they can run side by side.
struct ChunkedCall {
  const c10::cuda::CUDAGuard guard;
  Chunking chunks;
  at::Tensor q, k, v;  // [B, T, H, K or V]
  DeltaChunkShape shape;
  at::Tensor g, strength;                                                      // [B, T, H], float32
  at::Tensor q_reach, k_tail, k_gone, added, inverse, scores, b, beta, whole;  // as DeltaChunks
  at::Tensor told;  // [prepared and walked, N, H]; undefined where kernels run in turns

  ChunkedCall(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
              const at::Tensor& beta_BTH, const Optional& documents, double scale)
      : guard(q_BTHK.device()),
        chunks(q_BTHK, kWalkedChunk, documents, /*fit=*/false),
        q(in_rows(q_BTHK)),
        k(in_rows(k_BTHK)),
        v(in_rows(v_BTHV)),
        shape{q.size(2), q.size(3), v.size(3), chunks.table(), scale},
        g(g_BTH.to(at::kFloat).contiguous()),
        strength(beta_BTH.to(at::kFloat).contiguous()) {
    const int64_t C = kWalkedChunk, K = shape.key_dim, V = shape.value_dim;
    for (at::Tensor* x : {&q_reach, &k_tail, &k_gone}) *x = empty({C, K}, at::kBFloat16);
    for (at::Tensor* x : {&inverse, &scores}) *x = empty({C, C}, at::kBFloat16);
    added = empty({V, C}, at::kFloat), beta = empty({C}, at::kFloat), whole = empty({}, at::kFloat);
    b = empty({C}, at::kDouble);
    if (delta_overlaps(shape)) told = at::zeros({2, chunks.chunks(), shape.heads}, whole.options().dtype(at::kInt));
  }

  bool overlaps() const { return told.defined(); }
  unsigned* prepared() const { return overlaps() ? static_cast<unsigned*>(told.data_ptr()) : nullptr; }
  unsigned* walked() const { return overlaps() ? prepared() + told.stride(0) : nullptr; }

  void prepare() const {
    delta_chunks(shape, rows_of(q), rows_of(k), rows_of(v), g.const_data_ptr<float>(), strength.const_data_ptr<float>(),
                 {.q_reach_NHCK = q_reach.data_ptr(),
                  .k_tail_NHCK = k_tail.data_ptr(),
                  .k_gone_NHCK = k_gone.data_ptr(),
                  .added_NHVC = added.data_ptr<float>(),
                  .inverse_NHCC = inverse.data_ptr(),
                  .scores_NHCC = scores.data_ptr(),
                  .b_NHC = b.data_ptr<double>(),
                  .beta_NHC = beta.data_ptr<float>(),
                  .whole_NH = whole.data_ptr<float>(),
                  .prepared_NH = prepared()},
                 stream_of(q));
  }

  at::Tensor empty(at::IntArrayRef of_chunk, at::ScalarType type) const {
    std::vector<int64_t> sizes = {chunks.chunks(), shape.heads};
    sizes.insert(sizes.end(), of_chunk.begin(), of_chunk.end());
    return at::empty(sizes, q.options().dtype(type).requires_grad(false));
  }
  at::Tensor state_of(const Optional& start_SHKV) const {
    return start_SHKV ? start_SHKV->to(at::kFloat).clone(at::MemoryFormat::Contiguous)
                      : at::zeros({chunks.sequences(), shape.heads, shape.key_dim, shape.value_dim}, whole.options());
  }
  void walk(DeltaChunkWalk walk, Stream stream) const {
    walk.q_reach_NHCK = q_reach.const_data_ptr(), walk.k_tail_NHCK = k_tail.const_data_ptr();
    walk.k_gone_NHCK = k_gone.const_data_ptr(), walk.scores_NHCC = scores.const_data_ptr();
    walk.added_NHVC = added.const_data_ptr<float>(), walk.whole_NH = whole.const_data_ptr<float>();
    walk.prepared_NH = prepared();
    delta_chunk_walk(shape, walk, stream);
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& g_BTH, const at::Tensor& beta_BTH, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return forward_of_products(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents, scale, chunk);
  const ChunkedCall call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, documents, scale);
  const at::Tensor output = dense_like(v_BTHV), state = call.state_of(initial);
  call.prepare();
  call.walk({.state_SHKV = state.data_ptr<float>(), .output_THV = output.data_ptr()}, stream_of(q_BTHK));
  return {output, state};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTH,
                                 const at::Tensor& beta_BTH, const Optional& initial, const Optional& documents,
                                 double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return backward_of_products(d_output_BTHV, d_final, q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, initial, documents,
                                scale, chunk);
  const ChunkedCall call(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, documents, scale);
  const at::Tensor dO = in_rows(d_output_BTHV), state = call.state_of(initial), d_state = call.state_of(d_final);
  const int64_t C = kWalkedChunk, K = call.shape.key_dim, V = call.shape.value_dim;
  const at::Tensor before = call.empty({V, K}, at::kBFloat16), d_after = at::empty_like(before);
  const at::Tensor written = call.empty({C, V}, at::kBFloat16), d_written = at::empty_like(written);
  const at::Tensor dq = dense_like(q_BTHK), dk = dense_like(k_BTHK), dv = dense_like(v_BTHV);
  const at::Tensor dg = at::empty(g_BTH.sizes(), call.beta.options()), d_beta = at::empty_like(dg);
  call.prepare();
  // Neither walk reads what the other leaves. The walk forward is early enough for the preparation, which it follows,
  // the walk back for the gradients. In turns with those the walks are beside each other, and the one back, which is
  // the longer one, waits for no event.
  std::optional<Beside> beside;
  if (!call.overlaps()) beside.emplace(q_BTHK.get_device());
  call.walk({.state_SHKV = state.data_ptr<float>(),
             .states_NHVK = before.data_ptr(),
             .written_NHCV = written.data_ptr(),
             .walked_NH = call.walked()},
            beside ? beside->stream() : stream_of(q_BTHK));
  call.walk({.d_output = rows_of(dO),
             .state_SHKV = d_state.data_ptr<float>(),
             .states_NHVK = d_after.data_ptr(),
             .written_NHCV = d_written.data_ptr(),
             .walked_NH = call.walked()},
            stream_of(q_BTHK));
  if (beside) beside->join();
  delta_chunk_gradients(call.shape,
                        {.q = rows_of(call.q),
                         .k = rows_of(call.k),
                         .v = rows_of(call.v),
                         .d_output = rows_of(dO),
                         .inverse_NHCC = call.inverse.const_data_ptr(),
                         .written_NHCV = written.const_data_ptr(),
                         .d_written_NHCV = d_written.const_data_ptr(),
                         .before_NHVK = before.const_data_ptr(),
                         .d_after_NHVK = d_after.const_data_ptr(),
                         .b_NHC = call.b.const_data_ptr<double>(),
                         .beta_NHC = call.beta.const_data_ptr<float>(),
                         .dq_THK = dq.data_ptr(),
                         .dk_THK = dk.data_ptr(),
                         .dv_THV = dv.data_ptr(),
                         .dg_TH = dg.data_ptr<float>(),
                         .d_beta_TH = d_beta.data_ptr<float>(),
                         .walked_NH = call.walked()},
                        stream_of(q_BTHK));
  return {dq, dk, dv, dg.to(g_BTH.scalar_type()), d_beta.to(beta_BTH.scalar_type()), d_state};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("gated_delta_rule", forward);
  library.impl("gated_delta_rule_backward", backward);
}

}  // namespace flashmorph::cuda
