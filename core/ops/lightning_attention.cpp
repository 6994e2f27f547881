#include "core/ops/lightning_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

// Letters: B batch, T tokens, H heads, K key dim, V value dim, C tokens a chunk, N chunks, G = B*H*N.
// Within a chunk, i = 1..C: gam_i = exp(g i), tail_i = exp(g (length - i)), Gam_ij = exp(g (i - j)) for j <= i, else 0.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The decay factors of one call; the last chunk may be shorter than the others.
struct Decays {
  at::Tensor gam_HC;     // [H, 1, C, 1]
  at::Tensor tail_HNC;   // [H, N, C, 1], 0 beyond a chunk's length
  at::Tensor gam_HCC;    // [H, 1, C, C]
  at::Tensor whole_NH;   // [N, H, 1, 1]: exp(g length), by which a chunk shrinks the state

  Decays(const at::Tensor& log_decay_H, int64_t tokens, int64_t chunk, const at::Tensor& like) {
    const int64_t chunks = (tokens + chunk - 1) / chunk;
    const auto exact = like.options().dtype(at::kDouble).requires_grad(false);
    const at::Tensor g = log_decay_H.detach().to(exact).view({-1, 1, 1});
    const at::Tensor i = at::arange(1, chunk + 1, exact);
    at::Tensor length_N = at::full({chunks}, chunk, exact);
    length_N[chunks - 1] = tokens - (chunks - 1) * chunk;

    const auto dtype = like.scalar_type();
    const at::Tensor later = i.view({-1, 1}) - i;  // i - j
    gam_HCC = at::where(later >= 0, (g * later.clamp_min(0)).exp(), at::zeros({}, exact)).to(dtype).unsqueeze(1);
    gam_HC = (g * i).exp().to(dtype).view({-1, 1, chunk, 1});
    const at::Tensor to_end = length_N.view({-1, 1}) - i;  // [N, C]
    tail_HNC = at::where(to_end >= 0, (g * to_end.clamp_min(0)).exp(), at::zeros({}, exact)).to(dtype).unsqueeze(-1);
    whole_NH = (g.view({1, -1}) * length_N.view({-1, 1})).exp().to(dtype).view({chunks, -1, 1, 1});
  }
};

// [B, T, H, D] of any strides -> contiguous [B, H, N, C, D], zeros after the last token.
at::Tensor chunked(const at::Tensor& x_BTHD, int64_t chunk) {
  const int64_t tokens = x_BTHD.size(1), chunks = (tokens + chunk - 1) / chunk;
  at::Tensor x = x_BTHD.transpose(1, 2);
  if (chunks * chunk != tokens) x = at::constant_pad_nd(x, {0, 0, 0, chunks * chunk - tokens});
  return x.contiguous().view({x.size(0), x.size(1), chunks, chunk, x.size(3)});
}

// [B, H, N, C, D] -> [B, T, H, D].
at::Tensor unchunked(const at::Tensor& x_BHNCD, int64_t tokens) {
  return x_BHNCD.flatten(2, 3).narrow(2, 0, tokens).transpose(1, 2);
}

at::Tensor flat(const at::Tensor& x_BHNXY) { return x_BHNXY.flatten(0, 2); }

// The states before each chunk, [B, H, N, K, V], and the one after the last.
std::pair<at::Tensor, at::Tensor> states_before(const at::Tensor& k_BHNCK, const at::Tensor& v_BHNCV,
                                                const Decays& decays, const std::optional<at::Tensor>& initial) {
  const auto B = k_BHNCK.size(0), H = k_BHNCK.size(1), N = k_BHNCK.size(2), K = k_BHNCK.size(4), V = v_BHNCV.size(4);
  const at::Tensor added = at::bmm(flat(k_BHNCK * decays.tail_HNC).transpose(1, 2), flat(v_BHNCV)).view({B, H, N, K, V});
  at::Tensor before = at::empty({B, H, N, K, V}, k_BHNCK.options());
  at::Tensor state = initial ? initial->clone(at::MemoryFormat::Contiguous) : at::zeros({B, H, K, V}, k_BHNCK.options());
  for (int64_t n = 0; n < N; ++n) {
    before.select(2, n).copy_(state);
    state.mul_(decays.whole_NH[n]).add_(added.select(2, n));
  }
  return {before, state};
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTHK, const at::Tensor& v_BTHV,
                                           const at::Tensor& log_decay_H, const std::optional<at::Tensor>& initial,
                                           double scale, int64_t chunk_size) {
  TORCH_CHECK(q_BTHK.dim() == 4 && k_BTHK.sizes() == q_BTHK.sizes(), "lightning_attention: q and k must be [B, T, H, K]");
  TORCH_CHECK(v_BTHV.dim() == 4 && v_BTHV.sizes().slice(0, 3) == q_BTHK.sizes().slice(0, 3),
              "lightning_attention: v must be [B, T, H, V]");
  TORCH_CHECK(log_decay_H.numel() == q_BTHK.size(2), "lightning_attention: log_decay must have one entry a head");
  TORCH_CHECK(!initial || initial->sizes().equals({q_BTHK.size(0), q_BTHK.size(2), q_BTHK.size(3), v_BTHV.size(3)}),
              "lightning_attention: the initial state must be [B, H, K, V]");
  TORCH_CHECK(chunk_size >= 1 && q_BTHK.size(1) >= 1, "lightning_attention: chunk and tokens must be at least 1");
  const int64_t tokens = q_BTHK.size(1), chunk = std::min(chunk_size, tokens);
  const Decays decays(log_decay_H, tokens, chunk, q_BTHK);
  const at::Tensor q = chunked(q_BTHK, chunk), k = chunked(k_BTHK, chunk), v = chunked(v_BTHV, chunk);

  const auto [before, final_state] = states_before(k, v, decays, initial);
  at::Tensor scores = at::bmm(flat(q), flat(k).transpose(1, 2)).view({q.size(0), q.size(1), q.size(2), chunk, chunk});
  scores.mul_(decays.gam_HCC);
  at::Tensor o = at::bmm(flat(scores), flat(v));
  o.baddbmm_(flat(q * decays.gam_HC), flat(before), scale, scale);
  return {unchunked(o.view_as(v), tokens), final_state};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& d_output_BTHV, const std::optional<at::Tensor>& d_final, const at::Tensor& q_BTHK,
    const at::Tensor& k_BTHK, const at::Tensor& v_BTHV, const at::Tensor& log_decay_H,
    const std::optional<at::Tensor>& initial, double scale, int64_t chunk_size) {
  const int64_t tokens = q_BTHK.size(1), chunk = std::min(chunk_size, tokens);
  const Decays decays(log_decay_H, tokens, chunk, q_BTHK);
  const at::Tensor q = chunked(q_BTHK, chunk), k = chunked(k_BTHK, chunk), v = chunked(v_BTHV, chunk);
  const at::Tensor dO = chunked(d_output_BTHV, chunk).mul(scale);
  const auto B = q.size(0), H = q.size(1), N = q.size(2);

  const at::Tensor before = states_before(k, v, decays, initial).first;
  const at::Tensor read = at::bmm(flat(q * decays.gam_HC).transpose(1, 2), flat(dO)).view_as(before);
  at::Tensor d_after = at::empty_like(before);  // gradient of the state after each chunk
  at::Tensor d_state = d_final ? d_final->clone(at::MemoryFormat::Contiguous)
                               : at::zeros({B, H, q.size(4), v.size(4)}, q.options());
  for (int64_t n = N - 1; n >= 0; --n) {
    d_after.select(2, n).copy_(d_state);
    d_state.mul_(decays.whole_NH[n]).add_(read.select(2, n));
  }

  at::Tensor scores = at::bmm(flat(q), flat(k).transpose(1, 2)).view({B, H, N, chunk, chunk}).mul_(decays.gam_HCC);
  at::Tensor d_scores = at::bmm(flat(dO), flat(v).transpose(1, 2)).view_as(scores).mul_(decays.gam_HCC);
  at::Tensor dq = at::bmm(flat(dO), flat(before).transpose(1, 2)).view_as(q).mul_(decays.gam_HC);
  flat(dq).baddbmm_(flat(d_scores), flat(k));
  at::Tensor dk = at::bmm(flat(v), flat(d_after).transpose(1, 2)).view_as(k).mul_(decays.tail_HNC);
  flat(dk).baddbmm_(flat(d_scores).transpose(1, 2), flat(q));
  at::Tensor dv = at::bmm(flat(k), flat(d_after)).view_as(v).mul_(decays.tail_HNC);
  flat(dv).baddbmm_(flat(scores).transpose(1, 2), flat(dO));
  return {unchunked(dq, tokens), unchunked(dk, tokens), unchunked(dv, tokens), d_state};
}

auto& forward_op() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("flashmorph::lightning_attention", "")
                       .typed<decltype(forward)>();
  return op;
}

auto& backward_op() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("flashmorph::lightning_attention_backward", "")
                       .typed<decltype(backward)>();
  return op;
}

struct LightningAttention : Function<LightningAttention> {
  static variable_list forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& log_decay, const std::optional<at::Tensor>& initial, double scale,
                               int64_t chunk) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [output, state] = forward_op().call(q, k, v, log_decay, initial, scale, chunk);
    context->save_for_backward({q, k, v, log_decay, initial.value_or(at::Tensor())});
    context->saved_data["scale"] = scale;
    context->saved_data["chunk"] = chunk;
    context->set_materialize_grads(false);
    return {output, state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& q = saved[0];
    const auto initial = saved[4].defined() ? std::optional(saved[4]) : std::nullopt;
    const auto d_final = gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    const at::Tensor d_output = gradients[0].defined() ? gradients[0] : at::zeros_like(saved[2]);
    auto [dq, dk, dv, d_initial] =
        backward_op().call(d_output, d_final, q, saved[1], saved[2], saved[3], initial,
                           context->saved_data["scale"].toDouble(), context->saved_data["chunk"].toInt());
    if (!initial) d_initial.reset();
    return {dq, dk, dv, at::Tensor(), d_initial, at::Tensor(), at::Tensor()};
  }
};

std::tuple<at::Tensor, at::Tensor> with_gradient(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& log_decay, const std::optional<at::Tensor>& initial,
                                                 double scale, int64_t chunk) {
  const variable_list results = LightningAttention::apply(q, k, v, log_decay, initial, scale, chunk);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY(flashmorph, library) {
  library.def(
      "lightning_attention(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? initial_state, float scale, int chunk)"
      " -> (Tensor output, Tensor final_state)");
  library.def(
      "lightning_attention_backward(Tensor d_output, Tensor? d_final_state, Tensor q, Tensor k, Tensor v, "
      "Tensor log_decay, Tensor? initial_state, float scale, int chunk) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("lightning_attention", forward);
  library.impl("lightning_attention_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Autograd, library) { library.impl("lightning_attention", with_gradient); }

std::pair<at::Tensor, at::Tensor> lightning_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                      const at::Tensor& log_decay,
                                                      const std::optional<at::Tensor>& initial_state, double scale,
                                                      int64_t chunk) {
  const auto [output, state] = forward_op().call(q, k, v, log_decay, initial_state, scale, chunk);
  return {output, state};
}

}  // namespace flashmorph
