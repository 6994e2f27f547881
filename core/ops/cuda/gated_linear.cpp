#include <torch/library.h>

#include <tuple>
#include <vector>

#include "core/ops/cuda/chunking.h"
#include "core/ops/cuda/gated_linear_kernels.h"
#include "core/ops/cuda/products.h"
#include "core/ops/cuda/tensors.h"

// gated_linear_attention of linear_attention.h on the card, in float32 (float64 for float64): the gradient of the
// decays subtracts nearly equal sums. Products between chunks are batched matrix products; what the tokens of a chunk
// do to each other, with a decay a channel, is kernels. Letters: B batch, T tokens, H heads, K key dim, V value dim, N
// chunks, C tokens a chunk, S sequences.

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

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& g_BTHK, const Optional& initial, const Optional& documents,
                                           double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, g_BTHK, initial, documents, chunk);
  return {call.joined(scaled_sum(scale, call.q_down, call.before, call.scores, call.v), v_BTHV), call.final_state};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& g_BTHK,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
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

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("gated_linear_attention", forward);
  library.impl("gated_linear_attention_backward", backward);
}

}  // namespace flashmorph::cuda
