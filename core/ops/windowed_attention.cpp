#include "core/ops/windowed_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

// Queries go in blocks of C, each with the C + W - 1 keys that its tokens see: products as in full attention, but few.

namespace flashmorph {
namespace {

// Enough queries a block for its products, not so many that most of them are masked.
int64_t block_of(int64_t window, int64_t tokens) { return std::min(std::max<int64_t>(window, 64), tokens); }

// [N, 1, C, C + W - 1]: which keys of its block each query sees. Key c of block n is token past + n C + c - (W - 1).
at::Tensor visible(int64_t blocks, int64_t block, int64_t window, int64_t past,
                   const std::optional<at::Tensor>& place_T, const at::Device& device) {
  const auto places = at::TensorOptions(at::kLong).device(device);
  const at::Tensor query_C1 = at::arange(block, places).view({-1, 1});
  const at::Tensor key_L = at::arange(block + window - 1, places);
  const at::Tensor band_CL = (key_L >= query_C1).logical_and(key_L < query_C1 + window);
  // How many tokens of its own document lie before a query, and so how far back it may look.
  const at::Tensor before_T = place_T
                                  ? at::constant_pad_nd(place_T->to(at::kLong), {0, blocks * block - place_T->size(0)})
                                  : at::arange(past, past + blocks * block, places);
  const at::Tensor back_CL = query_C1 + window - 1 - key_L;
  return band_CL.logical_and(back_CL <= before_T.view({blocks, block, 1})).unsqueeze(1);
}

at::Tensor repeated_heads(const at::Tensor& x_BPGK, int64_t heads) {
  return x_BPGK.transpose(1, 2).repeat_interleave(heads / x_BPGK.size(2), 1);
}

// A sink is a key more, on a channel of its own, which each head's queries weigh by the head's logit. Channels come by
// eight, as kernels want them.
at::Tensor attend(const at::Tensor& q_BHCK, const at::Tensor& k_BHLK, const at::Tensor& v_BHLK,
                  const at::Tensor& visible_B1CL, const std::optional<at::Tensor>& sinks_H) {
  constexpr int64_t kChannels = 8;
  const int64_t K = q_BHCK.size(3);
  const double scale = 1.0 / std::sqrt(static_cast<double>(K));
  const auto attended = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& visible) {
    return at::scaled_dot_product_attention(q, k, v, visible, /*dropout_p=*/0.0, /*is_causal=*/false, scale);
  };
  if (!sinks_H) return attended(q_BHCK, k_BHLK, v_BHLK, visible_B1CL);
  const at::Tensor logit_H11 = (*sinks_H / scale).to(q_BHCK.scalar_type()).view({-1, 1, 1});
  const at::Tensor q = at::cat({q_BHCK, logit_H11.expand({q_BHCK.size(0), -1, q_BHCK.size(2), kChannels})}, 3);
  const at::Tensor k = at::constant_pad_nd(k_BHLK, {0, kChannels, 0, 1});
  k.select(2, -1).select(2, K).fill_(1.0);
  const at::Tensor v = at::constant_pad_nd(v_BHLK, {0, kChannels, 0, 1});
  return attended(q, k, v, at::constant_pad_nd(visible_B1CL, {0, 1}, true)).narrow(3, 0, K);
}

}  // namespace

at::Tensor windowed_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                              int64_t window, const std::optional<at::Tensor>& place_T,
                              const std::optional<at::Tensor>& sinks_H) {
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), past = k_BPGK.size(1) - T;
  TORCH_CHECK(window >= 1 && past >= 0 && v_BPGK.sizes() == k_BPGK.sizes() && H % k_BPGK.size(2) == 0,
              "windowed_attention: k and v must be [B, P, G, K] with P >= T and H a multiple of G, window at least 1");
  TORCH_CHECK(!place_T || (past == 0 && B == 1), "windowed_attention: packed documents do not continue others");
  const int64_t C = block_of(window, T), N = (T + C - 1) / C, filling = N * C - T;

  const auto filled = [&](const at::Tensor& x, int64_t before) {
    return at::constant_pad_nd(x, {0, 0, 0, 0, before, filling});
  };
  const at::Tensor q = filled(q_BTHK, 0).unflatten(1, {N, C}).flatten(0, 1).transpose(1, 2);
  const auto places = at::TensorOptions(at::kLong).device(q.device());
  const at::Tensor keys_NL = C * at::arange(N, places).view({-1, 1}) + at::arange(C + window - 1, places);
  // Keys from W - 1 before the first query on: fewer are there, or more.
  const auto blocks_of = [&](const at::Tensor& x_BPGK) {
    const int64_t missing = window - 1 - past;
    const at::Tensor from_first =
        missing >= 0 ? filled(x_BPGK, missing) : filled(x_BPGK.narrow(1, -missing, x_BPGK.size(1) + missing), 0);
    const at::Tensor blocks_BNLGK = from_first.index_select(1, keys_NL.flatten()).unflatten(1, keys_NL.sizes());
    return repeated_heads(blocks_BNLGK.flatten(0, 1), H);
  };
  const at::Tensor mask = visible(N, C, window, past, place_T, q.device());
  const at::Tensor o =
      attend(q, blocks_of(k_BPGK), blocks_of(v_BPGK), B == 1 ? mask : mask.repeat({B, 1, 1, 1}), sinks_H);
  return o.transpose(1, 2).reshape({B, N * C, H, q_BTHK.size(3)}).narrow(1, 0, T);
}

at::Tensor next_windowed_attention(const at::Tensor& q_B1HK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                                   const at::Tensor& visible_B, int64_t longest,
                                   const std::optional<at::Tensor>& sinks_H) {
  const auto heads = [&](const at::Tensor& x_BPGK) {
    return repeated_heads(x_BPGK.narrow(1, 0, longest), q_B1HK.size(2));
  };
  const at::Tensor mask = at::arange(longest, visible_B.options()).lt(visible_B.view({-1, 1, 1, 1}));
  return attend(q_B1HK.transpose(1, 2), heads(k_BPGK), heads(v_BPGK), mask, sinks_H).transpose(1, 2);
}

}  // namespace flashmorph
