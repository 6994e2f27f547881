#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "core/config/run_config.h"
#include "core/model/cache.h"
#include "core/model/model_spec.h"
#include "core/model/positions.h"

namespace flashmorph {

// The causal short convolutions that some mixers put over their queries, keys and values.
// Letters: B batch, T tokens, C channels, W taps.
inline constexpr int64_t kTaps = 4;  // W

// [C, W]: the token itself, as if there were no convolution.
at::Tensor delta_taps(int64_t channels, const at::TensorOptions& options);

// A projection [C, D], the taps of the convolution behind it [C, W], and the bias behind that [C], which may be
// undefined.
struct ConvolvedProjection {
  const at::Tensor& weight;
  const at::Tensor& taps;
  const at::Tensor& bias;
};

// silu(convolution(projection of x_BTD) + bias) of each, [B, T, H, K]. The cache keeps the last inputs of all three.
std::array<at::Tensor, 3> convolved_heads(const at::Tensor& x_BTD, const std::array<ConvolvedProjection, 3>& of,
                                          int64_t head_dim, const Positions& positions, LayerCache* cache);

// In float32 at least.
at::Tensor exact(const at::Tensor& x);

// How long a token is for each head, softplus(projection of x + dt_bias), and the log-decay over it, -exp(A_log) times
// that; [B, T, H] each.
struct Steps {
  at::Tensor step_BTH, log_decay_BTH;
};
Steps steps_of(const at::Tensor& x_BTD, const at::Tensor& weight_HD, const at::Tensor& dt_bias_H,
               const at::Tensor& A_log_H);

// One decay a head whatever the projection adds: with exp(A_log) = 1 a step is the log-decay.
void start_steps(const at::Tensor& A_log_H, const at::Tensor& dt_bias_H, const at::Tensor& distance_H);

// What a mixer of them registers: its facts, and the bytes of a sequence's cache, the state and the last projections.
nlohmann::ordered_json convolved_facts(const MixerSection& mixer, const ModelSpec& model);
int64_t convolved_cache_bytes(const MixerSection& mixer, const ModelSpec& model, int64_t element);

}  // namespace flashmorph
