#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "core/ops/chunk_pairs.h"
#include "core/ops/chunks.h"
#include "core/ops/small_products.h"

// lightning_attention and scalar_gated_attention of linear_attention.h in ATen: one recurrence, whose decay a head is
// constant, or one a token. Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens a chunk, S
// sequences, G = B*H*N. Within a chunk, i = 1..C, b_i = g_1 + .. + g_i: gam_i = exp(b_i), tail_i = exp(b_C - b_i),
// Gam_ij = exp(b_i - b_j) for j <= i, else 0.

namespace flashmorph {
namespace {

using Optional = std::optional<at::Tensor>;

// The decay factors of one call; they broadcast to [B, H, N, C, .], and `whole` chunk by chunk to [B, H, K, V].
struct Decays {
  at::Tensor gam;    // [.., C, 1]
  at::Tensor tail;   // [.., C, 1], of a constant decay 0 beyond a chunk's length
  at::Tensor Gam;    // [.., C, C]
  at::Tensor whole;  // [N, .., H, 1, 1]: by which a chunk shrinks the state
};

Decays constant_decays(const at::Tensor& log_decay_H, const Chunks& chunks, const at::TensorOptions& options) {
  const int64_t chunk = chunks.size();
  const auto exact = at::TensorOptions(at::kDouble);
  const at::Tensor g = log_decay_H.to(at::kCPU, at::kDouble).clamp_min(kForgotten).view({-1, 1, 1});
  const at::Tensor i = at::arange(1, chunk + 1, exact);
  at::Tensor length_N = at::empty({chunks.count()}, exact);
  for (int64_t n = 0; n < chunks.count(); ++n) length_N.data_ptr<double>()[n] = static_cast<double>(chunks.length(n));

  const at::Tensor later = i.view({-1, 1}) - i;          // i - j
  const at::Tensor to_end = length_N.view({-1, 1}) - i;  // [N, C]
  const auto zero_unless = [&](const at::Tensor& distance) {
    return at::where(distance >= 0, (g * distance.clamp_min(0)).exp(), at::zeros({}, exact)).to(options);
  };
  return {.gam = (g * i).exp().to(options).view({-1, 1, chunk, 1}),
          .tail = zero_unless(to_end).unsqueeze(-1),
          .Gam = zero_unless(later).unsqueeze(1),
          .whole = (g.view({1, -1}) * length_N.view({-1, 1})).exp().to(options).view({chunks.count(), -1, 1, 1})};
}

// In float64: the differences of sums are small where the sums are not.
Decays decays_of_tokens(const at::Tensor& g_BTH, const Chunks& chunks, const at::TensorOptions& options) {
  const at::Tensor g = g_BTH.unsqueeze(-1).to(at::kDouble).clamp_min(kForgotten);
  const at::Tensor b = chunks.split(g).cumsum(3), last = b.narrow(3, chunks.size() - 1, 1);  // [B, H, N, C or 1, 1]
  const auto factor = [&](const at::Tensor& exponent) { return exponent.to(options).exp(); };
  const at::Tensor between = decay_table(flat(b).squeeze(2).contiguous(), options.dtype().toScalarType());
  return {.gam = factor(b),
          .tail = factor(last - b),
          .Gam = between.unflatten(0, b.sizes().slice(0, 3)),
          .whole = factor(last).permute({2, 0, 1, 3, 4})};
}

// A decay is [H] or [B, T, H].
Decays decays_of(const at::Tensor& log_decay, const Chunks& chunks, const at::TensorOptions& options) {
  return log_decay.dim() == 1 ? constant_decays(log_decay, chunks, options)
                              : decays_of_tokens(log_decay, chunks, options);
}

// A call's tensors in chunks, in the dtype it is computed in, and the states before each chunk and after each sequence.
struct Call {
  Chunks chunks;
  at::Tensor q, k, v;  // [B, H, N, C, K or V]
  Decays decays;
  at::Tensor before_BHNKV, final_SHKV;

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay,
       const Optional& initial, const Optional& documents, int64_t chunk)
      : chunks(q_BTHK.size(0), q_BTHK.size(1), chunk, documents),
        q(split(q_BTHK)),
        k(split(k_BTHK)),
        v(split(v_BTHV)),
        decays(decays_of(log_decay, chunks, q.options())) {
    const at::Tensor added = unflat(batched_product(flat(k * decays.tail).transpose(1, 2), flat(v)));
    std::tie(before_BHNKV, final_SHKV) =
        chunks.forwards(initial, added.select(2, 0),
                        [&](int64_t n, at::Tensor& state) { state.mul_(decays.whole[n]).add_(added.select(2, n)); });
  }

  at::Tensor split(const at::Tensor& x) const { return chunks.split(x.to(at::toOpMathType(x.scalar_type()))); }
  at::Tensor unflat(const at::Tensor& x) const { return x.unflatten(0, {q.size(0), q.size(1), chunks.count()}); }
  at::Tensor scores() const { return unflat(batched_product(flat(q), flat(k).transpose(1, 2))).mul_(decays.Gam); }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& log_decay, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, log_decay, initial, documents, chunk);
  at::Tensor o = batched_product(flat(call.scores()), flat(call.v));
  add_batched_product(o, flat(call.q * call.decays.gam), flat(call.before_BHNKV));
  return {call.chunks.join(call.unflat(o.mul_(scale))).to(v_BTHV.scalar_type()), call.final_SHKV};
}

// The gradients of q, k, v, a decay that is learned, and the initial state.
std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, log_decay, initial, documents, chunk);
  const auto& [chunks, q, k, v, decays, before, final_state] = call;
  const at::Tensor dO = call.split(d_output_BTHV).mul(scale);

  const at::Tensor q_gam = q * decays.gam;
  const at::Tensor read = call.unflat(batched_product(flat(q_gam).transpose(1, 2), flat(dO)));
  const auto [d_after, d_initial] = chunks.backwards(
      d_final, read.select(2, 0),
      [&, &whole = decays.whole](int64_t n, at::Tensor& d_state) { d_state.mul_(whole[n]).add_(read.select(2, n)); });

  const at::Tensor qk = batched_product(flat(q), flat(k).transpose(1, 2));
  const at::Tensor d_scores = call.unflat(batched_product(flat(dO), flat(v).transpose(1, 2))).mul_(decays.Gam);
  const at::Tensor through_q = call.unflat(batched_product(flat(dO), flat(before).transpose(1, 2)));   // S dO_i
  const at::Tensor from_state = call.unflat(batched_product(flat(v), flat(d_after).transpose(1, 2)));  // dS' v_i

  at::Tensor dg_GC;
  if (log_decay.dim() > 1) {  // every place where a decay acts, each term as it is: no difference of large sums
    const at::Tensor reads = flat(q_gam * through_q).sum(2), writes = flat(k * decays.tail * from_state).sum(2);
    const at::Tensor carried =
        flat(before * d_after).sum({1, 2}).view({-1, 1}) * decays.whole.permute({1, 2, 0, 3, 4}).reshape({-1, 1});
    dg_GC = sum_across(flat(d_scores), qk) + sum_from(reads) + sum_before(writes) + carried;
  }

  const at::Tensor dq = through_q.mul_(decays.gam), dk = from_state.mul_(decays.tail);
  add_batched_product(flat(dq), flat(d_scores), flat(k));
  add_batched_product(flat(dk), flat(d_scores).transpose(1, 2), flat(q));
  at::Tensor dv = call.unflat(batched_product(flat(k), flat(d_after))).mul_(decays.tail);
  add_batched_product(flat(dv), flat(call.unflat(qk) * decays.Gam).transpose(1, 2), flat(dO));
  const auto joined = [&](const at::Tensor& x, const at::Tensor& like) {
    return chunks.join(x).to(like.scalar_type());
  };
  std::vector<at::Tensor> found = {joined(dq, q_BTHK), joined(dk, k_BTHK), joined(dv, v_BTHV)};
  if (dg_GC.defined()) found.push_back(joined(call.unflat(dg_GC.unsqueeze(2)), log_decay).squeeze(3));
  found.push_back(d_initial);
  return found;
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  for (const char* name : {"lightning_attention", "scalar_gated_attention"}) {
    library.impl(name, forward);
    library.impl((std::string(name) + "_backward").c_str(), backward);
  }
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {  // the same tensors, without values
  for (const char* name : {"lightning_attention", "scalar_gated_attention"}) {
    library.impl(name, forward);
    library.impl((std::string(name) + "_backward").c_str(), backward);
  }
}

}  // namespace flashmorph
