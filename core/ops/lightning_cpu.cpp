#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "core/ops/chunks.h"

// lightning_attention of linear_attention.h in ATen.
// Letters: B batch, T tokens, H heads, K key dim, V value dim, N chunks, C tokens a chunk, S sequences.
// Within a chunk, i = 1..C: gam_i = exp(g i), tail_i = exp(g (length - i)), Gam_ij = exp(g (i - j)) for j <= i, else 0.

namespace flashmorph {
namespace {

using Optional = std::optional<at::Tensor>;

// The decay factors of one call.
struct Decays {
  at::Tensor gam_HC;    // [H, 1, C, 1]
  at::Tensor tail_HNC;  // [H, N, C, 1], 0 beyond a chunk's length
  at::Tensor gam_HCC;   // [H, 1, C, C]
  at::Tensor whole_NH;  // [N, H, 1, 1]: exp(g length), by which a chunk shrinks the state

  Decays(const at::Tensor& log_decay_H, const Chunks& chunks, const at::TensorOptions& options) {
    const int64_t chunk = chunks.size();
    const auto exact = at::TensorOptions(at::kDouble);
    const at::Tensor g = log_decay_H.to(at::kCPU, at::kDouble).clamp_min(kForgotten).view({-1, 1, 1});
    const at::Tensor i = at::arange(1, chunk + 1, exact);
    at::Tensor length_N = at::empty({chunks.count()}, exact);
    for (int64_t n = 0; n < chunks.count(); ++n) length_N.data_ptr<double>()[n] = static_cast<double>(chunks.length(n));

    const at::Tensor later = i.view({-1, 1}) - i;  // i - j
    gam_HCC = at::where(later >= 0, (g * later.clamp_min(0)).exp(), at::zeros({}, exact)).to(options).unsqueeze(1);
    gam_HC = (g * i).exp().to(options).view({-1, 1, chunk, 1});
    const at::Tensor to_end = length_N.view({-1, 1}) - i;  // [N, C]
    tail_HNC = at::where(to_end >= 0, (g * to_end.clamp_min(0)).exp(), at::zeros({}, exact)).to(options).unsqueeze(-1);
    whole_NH = (g.view({1, -1}) * length_N.view({-1, 1})).exp().to(options).view({chunks.count(), -1, 1, 1});
  }
};

// A call's tensors in chunks, in the dtype it is computed in, and the states before each chunk and after each sequence.
struct Call {
  Chunks chunks;
  at::Tensor q, k, v;  // [B, H, N, C, K or V]
  Decays decays;
  at::Tensor before_BHNKV, final_SHKV;

  Call(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay_H,
       const Optional& initial, const Optional& documents, int64_t chunk)
      : chunks(q_BTHK.size(0), q_BTHK.size(1), chunk, documents),
        q(split(q_BTHK)),
        k(split(k_BTHK)),
        v(split(v_BTHV)),
        decays(log_decay_H, chunks, q.options()) {
    const at::Tensor added = unflat(at::bmm(flat(k * decays.tail_HNC).transpose(1, 2), flat(v)));
    std::tie(before_BHNKV, final_SHKV) =
        chunks.forwards(initial, added.select(2, 0),
                        [&](int64_t n, at::Tensor& state) { state.mul_(decays.whole_NH[n]).add_(added.select(2, n)); });
  }

  at::Tensor split(const at::Tensor& x) const { return chunks.split(x.to(at::toOpMathType(x.scalar_type()))); }
  at::Tensor unflat(const at::Tensor& x) const { return x.unflatten(0, {q.size(0), q.size(1), chunks.count()}); }
  at::Tensor scores() const { return unflat(at::bmm(flat(q), flat(k).transpose(1, 2))).mul_(decays.gam_HCC); }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& log_decay_H, const Optional& initial,
                                           const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, log_decay_H, initial, documents, chunk);
  at::Tensor o = at::bmm(flat(call.scores()), flat(call.v));
  o.baddbmm_(flat(call.q * call.decays.gam_HC), flat(call.before_BHNKV), scale, scale);
  return {call.chunks.join(call.unflat(o)).to(v_BTHV.scalar_type()), call.final_SHKV};
}

std::vector<at::Tensor> backward(const at::Tensor& d_output_BTHV, const Optional& d_final, const at::Tensor& q_BTHK,
                                 const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay_H,
                                 const Optional& initial, const Optional& documents, double scale, int64_t chunk) {
  const Call call(q_BTHK, k_BTHK, v_BTHV, log_decay_H, initial, documents, chunk);
  const auto& [chunks, q, k, v, decays, before, final_state] = call;
  const at::Tensor dO = call.split(d_output_BTHV).mul(scale);

  const at::Tensor read = call.unflat(at::bmm(flat(q * decays.gam_HC).transpose(1, 2), flat(dO)));
  const auto [d_after, d_initial] =
      chunks.backwards(d_final, read.select(2, 0), [&, &whole = decays.whole_NH](int64_t n, at::Tensor& d_state) {
        d_state.mul_(whole[n]).add_(read.select(2, n));
      });

  const at::Tensor scores = call.scores();
  const at::Tensor d_scores = call.unflat(at::bmm(flat(dO), flat(v).transpose(1, 2))).mul_(decays.gam_HCC);
  at::Tensor dq = call.unflat(at::bmm(flat(dO), flat(before).transpose(1, 2))).mul_(decays.gam_HC);
  flat(dq).baddbmm_(flat(d_scores), flat(k));
  at::Tensor dk = call.unflat(at::bmm(flat(v), flat(d_after).transpose(1, 2))).mul_(decays.tail_HNC);
  flat(dk).baddbmm_(flat(d_scores).transpose(1, 2), flat(q));
  at::Tensor dv = call.unflat(at::bmm(flat(k), flat(d_after))).mul_(decays.tail_HNC);
  flat(dv).baddbmm_(flat(scores).transpose(1, 2), flat(dO));
  const auto joined = [&](const at::Tensor& x) { return call.chunks.join(x).to(q_BTHK.scalar_type()); };
  return {joined(dq), joined(dk), joined(dv), d_initial};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("lightning_attention", forward);
  library.impl("lightning_attention_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {  // the same tensors, without values
  library.impl("lightning_attention", forward);
  library.impl("lightning_attention_backward", backward);
}

}  // namespace flashmorph
