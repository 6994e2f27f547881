#include <torch/library.h>

#include <tuple>
#include <vector>

#include "core/ops/cuda/chunking.h"
#include "core/ops/cuda/products.h"
#include "core/ops/cuda/tensors.h"

// lightning_attention of linear_attention.h on the card: the chunks' products are batched matrix products in the
// inputs' dtype with float32 sums; decays, masks and the scan of the states are kernels. States are float32 at least.
// Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens a chunk, S sequences.

namespace flashmorph::cuda {
namespace {

using Optional = std::optional<at::Tensor>;

struct Call {
  const c10::cuda::CUDAGuard guard;
  at::Tensor log_decay_H;
  Chunking chunks;
  double scale;

  Call(const at::Tensor& q_BTHK, const at::Tensor& log_decay, const Optional& documents, double scale, int64_t chunk)
      : guard(q_BTHK.device()),
        log_decay_H(log_decay.to(q_BTHK.options().dtype(at::kDouble)).clamp_min(kForgotten).contiguous()),
        chunks(q_BTHK, chunk, documents),
        scale(scale) {}

  // Gam o (a b^T)
  at::Tensor decayed_scores(const at::Tensor& a_NHCX, const at::Tensor& b_NHCX) const {
    at::Tensor scores = product(a_NHCX, flipped(b_NHCX));
    decay_scores(element_of(scores), scores.data_ptr(), scores.size(1), chunks.chunks(), chunks.size(),
                 log_decay_H.const_data_ptr<double>(), stream_of(scores));
    return scores;
  }

  // The state when the walk entered each chunk, in the dtype of `like`, and where it left the sequences.
  std::pair<at::Tensor, at::Tensor> scan(const at::Tensor& added_NHKV, const Optional& start_SHKV, double factor,
                                         bool backwards, const at::Tensor& like) const {
    const int64_t heads = added_NHKV.size(1), K = added_NHKV.size(2), V = added_NHKV.size(3);
    at::Tensor state = start_SHKV ? start_SHKV->to(added_NHKV.scalar_type()).clone(at::MemoryFormat::Contiguous)
                                  : at::zeros({chunks.sequences(), heads, K, V}, added_NHKV.options());
    at::Tensor entered = at::empty_like(added_NHKV, like.options());
    scan_states(element_of(like), added_NHKV.const_data_ptr(), state.data_ptr(), entered.data_ptr(), heads, K * V,
                chunks.table(), log_decay_H.const_data_ptr<double>(), factor, backwards, stream_of(like));
    return {entered, state};
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& log_decay, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, log_decay, documents, scale, chunk);
  const auto [q, q_decayed] = call.chunks.packed(q_BTHK, call.log_decay_H, Decay::since_start);
  const at::Tensor k = call.chunks.packed(k_BTHK);
  const auto [v, v_decayed] = call.chunks.packed(v_BTHV, call.log_decay_H, Decay::to_end);

  const auto [before, final_state] = call.scan(exact_product(flipped(k), v_decayed), initial, 1.0, false, q);
  const at::Tensor o = scaled_sum(scale, q_decayed, before, call.decayed_scores(q, k), v);
  return {call.chunks.unpacked(o), final_state};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, log_decay, documents, scale, chunk);
  const auto [q, q_decayed] = call.chunks.packed(q_BTHK, call.log_decay_H, Decay::since_start);
  const auto [k, k_decayed] = call.chunks.packed(k_BTHK, call.log_decay_H, Decay::to_end);
  const auto [v, v_decayed] = call.chunks.packed(v_BTHV, call.log_decay_H, Decay::to_end);
  const auto [dO, dO_decayed] = call.chunks.packed(d_output_BTHV, call.log_decay_H, Decay::since_start);

  const at::Tensor before = call.scan(exact_product(flipped(k), v_decayed), initial, 1.0, false, q).first;
  const auto [d_after, d_initial] = call.scan(exact_product(flipped(q_decayed), dO), d_final, scale, true, q);
  const at::Tensor scores = call.decayed_scores(q, k), d_scores = call.decayed_scores(dO, v);

  const at::Tensor dq = scaled_sum(scale, dO_decayed, flipped(before), d_scores, k);
  at::Tensor dk = product(v_decayed, flipped(d_after)), dv = product(k_decayed, d_after);
  flat(dk).baddbmm_(flat(flipped(d_scores)), flat(q), 1, scale);
  flat(dv).baddbmm_(flat(flipped(scores)), flat(dO), 1, scale);
  return {call.chunks.unpacked(dq), call.chunks.unpacked(dk), call.chunks.unpacked(dv), d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("lightning_attention", forward);
  library.impl("lightning_attention_backward", backward);
}

}  // namespace flashmorph::cuda
