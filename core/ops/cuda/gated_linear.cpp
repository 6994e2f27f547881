#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/ops/cuda/chunking.h"
#include "core/ops/cuda/fused.h"
#include "core/ops/cuda/gated_linear_kernels.h"
#include "core/ops/cuda/gated_walk.h"
#include "core/ops/cuda/products.h"
#include "core/ops/cuda/rows.h"
#include "core/ops/cuda/tensors.h"

// gated_linear_attention of linear_attention.h on the card. In bfloat16, for the head dims that walk.h names, the
// kernels of gated_walk.h. Else in float32 (float64 for float64), since there the gradient of the decays subtracts
// nearly equal sums: products between chunks are batched matrix products; what the tokens of a chunk do to each other,
// with a decay a channel, is kernels. Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens a
// chunk, S sequences.

namespace flashmorph::cuda {
namespace {

using Optional = std::optional<at::Tensor>;

// A call's tensors in chunks, the decays, the scores, and the states before each chunk and after each sequence.
struct Call {
  const c10::cuda::CUDAGuard guard;
  Chunking chunks;
  at::Tensor q, k, v, b;             // [N, H, C, K or V]; b: sums of the decays' logarithms, float64
  at::Tensor q_down, k_tail, whole;  // q e^b, k e^(b_C - b), e^(b_C) [N, H, K]
  at::Tensor scores, before, final_state;

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
       const Optional& initial, const Optional& documents, int64_t chunk)
      : guard(q_BTHK.device()),
        chunks(q_BTHK, std::min(chunk, kMostGatedTokens), documents),
        q(packed(q_BTHK)),
        k(packed(k_BTHK)),
        v(packed(v_BTHV)),
        b(at::empty_like(q, q.options().dtype(at::kDouble))),
        q_down(at::empty_like(q)),
        k_tail(at::empty_like(q)),
        whole(at::empty({q.size(0), q.size(1), q.size(3)}, q.options())),
        scores(at::empty({q.size(0), q.size(1), q.size(2), q.size(2)}, q.options())) {
    const at::Tensor g = packed(g_BTHK.to(q.scalar_type()).clamp_min(kForgotten));
    gate_chunks(type(), q.const_data_ptr(), k.const_data_ptr(), g.const_data_ptr(), b.data_ptr<double>(),
                q_down.data_ptr(), k_tail.data_ptr(), whole.data_ptr(), matrices(), chunks.size(), q.size(3),
                stream_of(q));
    gated_scores(type(), q.const_data_ptr(), k.const_data_ptr(), b.const_data_ptr<double>(), scores.data_ptr(),
                 matrices(), chunks.size(), q.size(3), stream_of(q));
    std::tie(before, final_state) = scan(product(flipped(k_tail), v), initial, 1.0, /*backwards=*/false);
  }

  at::Tensor packed(const at::Tensor& x_BTHD) const {
    return chunks.packed(x_BTHD.to(at::toOpMathType(x_BTHD.scalar_type())));
  }
  Element type() const { return element_of(q); }
  int64_t matrices() const { return q.size(0) * q.size(1); }

  std::pair<at::Tensor, at::Tensor> scan(const at::Tensor& added_NHKV, const Optional& start_SHKV, double factor,
                                         bool backwards) const {
    const int64_t H = added_NHKV.size(1), K = added_NHKV.size(2), V = added_NHKV.size(3);
    at::Tensor state = start_SHKV ? start_SHKV->to(added_NHKV.scalar_type()).clone(at::MemoryFormat::Contiguous)
                                  : at::zeros({chunks.sequences(), H, K, V}, added_NHKV.options());
    at::Tensor entered = at::empty_like(added_NHKV);
    scan_gated_states(type(), added_NHKV.const_data_ptr(), state.data_ptr(), entered.data_ptr(), H, K, V,
                      chunks.table(), whole.const_data_ptr(), factor, backwards, stream_of(q));
    return {entered, state};
  }

  at::Tensor joined(const at::Tensor& x_NHCD, const at::Tensor& like) const {
    return chunks.unpacked(x_NHCD.to(like.scalar_type()));
  }
};

std::tuple<at::Tensor, at::Tensor> forward_of_products(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                                       const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
                                                       const Optional& initial, const Optional& documents, double scale,
                                                       int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, chunk);
  return {call.joined(scaled_sum(scale, call.q_down, call.before, call.scores, call.v), v_BTHV), call.final_state};
}

std::vector<at::Tensor> backward_of_products(const at::Tensor& d_output_BTHV, const Optional& d_final,
                                             const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                             const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
                                             const Optional& initial, const Optional& documents, double scale,
                                             int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, chunk);
  const at::Tensor dO = call.packed(d_output_BTHV).mul_(scale);
  const auto [d_after, d_initial] = call.scan(product(flipped(call.q_down), dO), d_final, 1.0, /*backwards=*/true);

  const at::Tensor dv = scaled_sum(1.0, call.k_tail, d_after, flipped(call.scores), dO);
  const at::Tensor d_scores = product(dO, flipped(call.v));
  const auto factor = [&](const at::Tensor& logarithm) { return logarithm.to(call.q.scalar_type()).exp(); };
  const at::Tensor last = call.b.narrow(2, call.chunks.size() - 1, 1);
  at::Tensor dq = product(dO, flipped(call.before)).mul_(factor(call.b));
  at::Tensor dk = product(call.v, flipped(d_after)).mul_(factor(last - call.b));
  // What reads through the chunk's whole decay: the state that passes, and the keys on their way to the chunk's end.
  const at::Tensor d_whole = (call.before * d_after).sum(3).mul_(call.whole) + (call.k * dk).sum(2);
  gated_scores_backward(call.type(), call.q.const_data_ptr(), call.k.const_data_ptr(), call.b.const_data_ptr<double>(),
                        d_scores.const_data_ptr(), dq.data_ptr(), dk.data_ptr(), call.matrices(), call.chunks.size(),
                        call.q.size(3), stream_of(call.q));
  at::Tensor dg = at::empty_like(call.q);
  gate_gradients(call.type(), call.q.const_data_ptr(), dq.const_data_ptr(), call.k.const_data_ptr(),
                 dk.const_data_ptr(), d_whole.const_data_ptr(), dg.data_ptr(), call.matrices(), call.chunks.size(),
                 call.q.size(3), stream_of(call.q));
  return {call.joined(dq, q_BTHK), call.joined(dk, k_BTHK), call.joined(dv, v_BTHV), call.joined(dg, g_BTHK),
          d_initial};
}

// A call in bfloat16: what the decays make of each chunk, and walks of the states.
struct Walks {
  const c10::cuda::CUDAGuard guard;
  Chunking chunks;
  at::Tensor q, k, v, g;  // [B, T, H, K or V]; g in float32
  at::Tensor q_down_NHCK, k_tail_NHCK, scores_NHCC, whole_NHK;
  GatedShape shape;
  Segments segments;

  Walks(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
        const Optional& documents, double scale)
      : guard(q_BTHK.device()),
        chunks(q_BTHK, kWalkedChunk, documents),
        q(in_rows(q_BTHK)),
        k(in_rows(k_BTHK)),
        v(in_rows(v_BTHV)),
        g(g_BTHK.to(at::kFloat).contiguous()),
        q_down_NHCK(empty(q, {kWalkedChunk, q.size(3)})),
        k_tail_NHCK(at::empty_like(q_down_NHCK)),
        scores_NHCC(empty(q, {kWalkedChunk, kWalkedChunk})),
        whole_NHK(empty(g, {q.size(3)})),
        shape{q.size(2), q.size(3), v.size(3), chunks.table(), scale},
        segments(chunks, segment_chunks(), q.device()) {
    gate_chunks_fused(
        shape, rows_of(q), rows_of(k), g.const_data_ptr<float>(),
        {q_down_NHCK.data_ptr(), k_tail_NHCK.data_ptr(), scores_NHCC.data_ptr(), whole_NHK.data_ptr<float>()},
        stream_of(q));
  }

  GatedWalk forwards() const { return walk(q_down_NHCK, k_tail_NHCK, v, false, shape.scale, 1); }
  GatedWalk backwards(const at::Tensor& d_output) const {
    return walk(k_tail_NHCK, q_down_NHCK, d_output, true, 1, shape.scale);
  }

  // The state in which the walk enters each segment, float32; undefined for zeros.
  at::Tensor entered(const GatedWalk& walk, const Optional& start_SHKV) const {
    const int64_t count = segments.table().chunks, H = shape.heads, K = shape.key_dim, V = shape.value_dim;
    if (count == chunks.sequences()) return start_SHKV ? start_SHKV->to(at::kFloat).contiguous() : at::Tensor();
    const at::Tensor added = at::empty({count, H, K, V}, whole_NHK.options()),
                     shrink = at::empty({count, H, K}, whole_NHK.options()), entered = at::empty_like(added);
    gated_segment_states(walk, added.data_ptr<float>(), shrink.data_ptr<float>(), stream_of(q));
    const at::Tensor state = start_SHKV ? start_SHKV->to(at::kFloat).clone(at::MemoryFormat::Contiguous)
                                        : at::zeros({chunks.sequences(), H, K, V}, added.options());
    scan_gated_states(Element::float32, added.const_data_ptr(), state.data_ptr(), entered.data_ptr(), H, K, V,
                      segments.table(), shrink.const_data_ptr(), 1.0, walk.backwards, stream_of(q));
    return entered;
  }

  // Any of output, states and where the sequences end may be null.
  void run(const GatedWalk& walk, const Optional& start_SHKV, const at::Tensor* output, at::Tensor* states,
           at::Tensor* left) const {
    const at::Tensor start = entered(walk, start_SHKV);
    const int64_t H = shape.heads, K = shape.key_dim, V = shape.value_dim;
    if (states != nullptr) *states = empty(q, {V, K});
    if (left != nullptr) *left = at::empty({chunks.sequences(), H, K, V}, whole_NHK.options());
    gated_walk(walk, start.defined() ? start.const_data_ptr<float>() : nullptr,
               output != nullptr ? output->data_ptr() : nullptr, states != nullptr ? states->data_ptr() : nullptr,
               left != nullptr ? left->data_ptr<float>() : nullptr, stream_of(q));
  }

 private:
  at::Tensor empty(const at::Tensor& like, at::IntArrayRef matrix) const {
    std::vector<int64_t> sizes = {chunks.chunks(), q.size(2)};
    sizes.insert(sizes.end(), matrix.begin(), matrix.end());
    return at::empty(sizes, like.options().requires_grad(false));
  }
  // As many as let every block of a walk be on the card at once.
  int64_t segment_chunks() const {
    const int64_t blocks = shape.heads * blocks_per_head(shape.value_dim);
    const int64_t count = std::max<int64_t>(1, gated_blocks_at_once(shape.key_dim) / blocks);
    return (chunks.chunks() + count - 1) / count;
  }
  GatedWalk walk(const at::Tensor& read, const at::Tensor& key, const at::Tensor& values, bool backwards,
                 double read_scale, double write_scale) const {
    return {shape,
            segments.table(),
            read.const_data_ptr(),
            key.const_data_ptr(),
            scores_NHCC.const_data_ptr(),
            whole_NHK.const_data_ptr<float>(),
            rows_of(values),
            backwards,
            read_scale,
            write_scale};
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& g_BTHK, const Optional& initial, const Optional& documents,
                                           double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return forward_of_products(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, scale, chunk);
  const Walks walks(q_BTHK, k_BTHK, v_BTHV, g_BTHK, documents, scale);
  const at::Tensor output = dense_like(v_BTHV);
  at::Tensor final_state;
  walks.run(walks.forwards(), initial, &output, nullptr, &final_state);
  return {output, final_state};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return backward_of_products(d_output_BTHV, d_final, q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, scale,
                                chunk);
  const Walks walks(q_BTHK, k_BTHK, v_BTHV, g_BTHK, documents, scale);
  const at::Tensor dO = in_rows(d_output_BTHV);
  const at::Tensor dq = dense_like(q_BTHK), dk = dense_like(k_BTHK), dv = dense_like(v_BTHV),
                   dg = at::empty_like(walks.g);
  at::Tensor before, d_after, d_initial;
  walks.run(walks.forwards(), initial, nullptr, &before, nullptr);
  walks.run(walks.backwards(dO), d_final, &dv, &d_after, &d_initial);
  gated_gradients(walks.shape,
                  {.q = rows_of(walks.q),
                   .k = rows_of(walks.k),
                   .v = rows_of(walks.v),
                   .d_output = rows_of(dO),
                   .g_THK = walks.g.const_data_ptr<float>(),
                   .before_NHVK = before.const_data_ptr(),
                   .d_after_NHVK = d_after.const_data_ptr(),
                   .dq_THK = dq.data_ptr(),
                   .dk_THK = dk.data_ptr(),
                   .dg_THK = dg.data_ptr<float>()},
                  stream_of(dO));
  return {dq, dk, dv, dg.to(g_BTHK.scalar_type()), d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("gated_linear_attention", forward);
  library.impl("gated_linear_attention_backward", backward);
}

}  // namespace flashmorph::cuda
