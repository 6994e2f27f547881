#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/ops/cuda/chunking.h"
#include "core/ops/cuda/lightning_walk.h"
#include "core/ops/cuda/products.h"
#include "core/ops/cuda/rows.h"
#include "core/ops/cuda/tensors.h"

// lightning_attention of linear_attention.h on the card. In bfloat16, for the head dims that lightning_walk.h has
// kernels for, blocks walk segments of the sequences. Else the chunks' products are batched matrix products in the
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
        log_decay_H(log_decay.to(q_BTHK.options().dtype(at::kDouble)).contiguous()),
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

std::tuple<at::Tensor, at::Tensor> forward_of_products(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                                       const at::Tensor& v_BTHV, const at::Tensor& log_decay,
                                                       const Optional& initial, const Optional& documents, double scale,
                                                       int64_t chunk) {
  const Call call(q_BTHK, log_decay, documents, scale, chunk);
  const auto [q, q_decayed] = call.chunks.packed(q_BTHK, call.log_decay_H, Decay::since_start);
  const at::Tensor k = call.chunks.packed(k_BTHK);
  const auto [v, v_decayed] = call.chunks.packed(v_BTHV, call.log_decay_H, Decay::to_end);

  const auto [before, final_state] = call.scan(exact_product(flipped(k), v_decayed), initial, 1.0, false, q);
  const at::Tensor o = scaled_sum(scale, q_decayed, before, call.decayed_scores(q, k), v);
  return {call.chunks.unpacked(o), final_state};
}

std::vector<at::Tensor> backward_of_products(const at::Tensor& d_output_BTHV, const Optional& d_final,
                                             const at::Tensor& q_BTHK, const at::Tensor& k_BTHK,
                                             const at::Tensor& v_BTHV, const at::Tensor& log_decay,
                                             const Optional& initial, const Optional& documents, double scale,
                                             int64_t chunk) {
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

// As many tokens as let every block of a walk be on the card at once; where that would cut nothing but a third off the
// longest sequences they stay whole, since cutting costs another walk.
int64_t segment_tokens(const at::Tensor& q_BTHK, const at::Tensor& v_BTHV, const Optional& documents_S1) {
  const c10::cuda::CUDAGuard guard(q_BTHK.device());
  const int64_t tokens = q_BTHK.size(0) * q_BTHK.size(1);
  const int64_t longest = longest_sequence(q_BTHK, documents_S1);
  const int64_t at_once = lightning_heads_at_once(q_BTHK.size(3), v_BTHV.size(3));
  const int64_t segments = std::max<int64_t>(1, at_once / q_BTHK.size(2));
  const int64_t even = ((tokens + segments - 1) / segments + kWalkedChunk - 1) / kWalkedChunk * kWalkedChunk;
  return 2 * longest <= 3 * even ? std::max(longest, even) : even;
}

// Walks of the whole call over segments, which are its Call's chunks.
struct Walks {
  Call call;
  int64_t heads;

  Walks(const at::Tensor& q_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay, const Optional& documents,
        double scale)
      : call(q_BTHK, log_decay, documents, scale, segment_tokens(q_BTHK, v_BTHV, documents)), heads(q_BTHK.size(2)) {}

  LightningWalk forwards(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    return walk(q, k, v, false, 0, call.scale, 1);
  }
  LightningWalk backwards(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    return walk(q, k, v, true, 1, 1, call.scale);
  }

  // The state in which the walk enters each segment, float32; undefined for zeros.
  at::Tensor entered(const LightningWalk& walk, const Optional& start_SHKV) const {
    if (call.chunks.chunks() == call.chunks.sequences())
      return start_SHKV ? start_SHKV->to(at::kFloat).contiguous() : at::Tensor();
    at::Tensor added = at::empty({call.chunks.chunks(), heads, walk.key_dim, walk.value_dim}, floats());
    segment_states(walk, added.data_ptr<float>(), stream_of(added));
    return call.scan(added, start_SHKV, 1, walk.backwards, added).first;
  }

  at::Tensor output(const LightningWalk& walk, const at::Tensor& entered, bool transposed, const at::Tensor& like_BTHV,
                    at::Tensor* left_SHKV) const {
    at::Tensor o = dense_like(like_BTHV);
    if (left_SHKV != nullptr)
      *left_SHKV = at::empty({call.chunks.sequences(), heads, walk.key_dim, walk.value_dim}, floats());
    lightning_walk(walk, entered.defined() ? entered.const_data_ptr<float>() : nullptr, transposed, o.data_ptr(),
                   left_SHKV != nullptr ? left_SHKV->data_ptr<float>() : nullptr, stream_of(o));
    return o;
  }

 private:
  at::TensorOptions floats() const { return call.log_decay_H.options().dtype(at::kFloat); }

  LightningWalk walk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool backwards, int late,
                     double read_scale, double write_scale) const {
    return {rows_of(q), rows_of(k), rows_of(v),          heads,
            k.size(3),  v.size(3),  call.chunks.table(), call.log_decay_H.const_data_ptr<double>(),
            backwards,  late,       call.scale,          read_scale,
            write_scale};
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& log_decay, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return forward_of_products(q_BTHK, k_BTHK, v_BTHV, log_decay, initial, documents, scale, chunk);
  const Walks walks(q_BTHK, v_BTHV, log_decay, documents, scale);
  const at::Tensor q = in_rows(q_BTHK), k = in_rows(k_BTHK), v = in_rows(v_BTHV);
  const LightningWalk walk = walks.forwards(q, k, v);
  at::Tensor final_state;
  const at::Tensor o = walks.output(walk, walks.entered(walk, initial), false, v_BTHV, &final_state);
  return {o, final_state};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  if (!walked(q_BTHK, v_BTHV))
    return backward_of_products(d_output_BTHV, d_final, q_BTHK, k_BTHK, v_BTHV, log_decay, initial, documents, scale,
                                chunk);
  const Walks walks(q_BTHK, v_BTHV, log_decay, documents, scale);
  const at::Tensor q = in_rows(q_BTHK), k = in_rows(k_BTHK), v = in_rows(v_BTHV), dO = in_rows(d_output_BTHV);
  const LightningWalk back = walks.backwards(k, q, dO);
  const at::Tensor before = walks.entered(walks.forwards(q, k, v), initial), d_after = walks.entered(back, d_final);
  at::Tensor d_initial;
  const at::Tensor dq = walks.output(walks.forwards(dO, v, k), before, true, q_BTHK, nullptr);
  const at::Tensor dk = walks.output(walks.backwards(v, dO, q), d_after, true, k_BTHK, nullptr);
  const at::Tensor dv = walks.output(back, d_after, false, v_BTHV, &d_initial);
  return {dq, dk, dv, d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("lightning_attention", forward);
  library.impl("lightning_attention_backward", backward);
}

}  // namespace flashmorph::cuda
