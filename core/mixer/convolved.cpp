#include "core/mixer/convolved.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "core/mixer/initial.h"
#include "core/mixer/linear_branch.h"
#include "core/ops/projection.h"
#include "core/ops/short_convolution.h"

namespace flashmorph {
namespace {

void keep_recent(const at::Tensor& x_BTC, LayerCache& cache) {
  const at::Tensor all = cache.recent_BPC.defined() ? at::cat({cache.recent_BPC, x_BTC}, 1) : x_BTC;
  const int64_t kept = std::min(kTaps - 1, all.size(1));
  cache.recent_BPC = all.narrow(1, all.size(1) - kept, kept).clone();
}

}  // namespace

at::Tensor delta_taps(int64_t channels, const at::TensorOptions& options) {
  at::Tensor taps = at::zeros({channels, kTaps}, options);
  taps.select(1, kTaps - 1).fill_(1.0);
  return taps;
}

std::array<at::Tensor, 3> convolved_heads(const at::Tensor& x_BTD, const std::array<ConvolvedProjection, 3>& of,
                                          int64_t head_dim, const Positions& positions, LayerCache* cache) {
  const std::vector<at::Tensor> x_BTC = project_each(x_BTD, {of[0].weight, of[1].weight, of[2].weight});
  const bool continues = cache != nullptr && cache->recent_BPC.defined();
  const std::vector<at::Tensor> past = continues ? cache->recent_BPC.chunk(3, -1) : std::vector<at::Tensor>();
  if (cache != nullptr) keep_recent(at::cat(x_BTC, -1), *cache);
  std::array<at::Tensor, 3> y_BTHK;
  for (size_t i = 0; i < 3; ++i) {
    const bool biased = of[i].bias.defined();
    const at::Tensor y_BTC = short_convolution(x_BTC[i], of[i].taps, continues ? std::optional(past[i]) : std::nullopt,
                                               positions.place_T, /*silu=*/!biased);
    y_BTHK[i] = (biased ? at::silu(y_BTC + of[i].bias) : y_BTC).unflatten(-1, {-1, head_dim});
  }
  return y_BTHK;
}

at::Tensor exact(const at::Tensor& x) { return x.to(at::toOpMathType(x.scalar_type())); }

Steps steps_of(const at::Tensor& x_BTD, const at::Tensor& weight_HD, const at::Tensor& dt_bias_H,
               const at::Tensor& A_log_H) {
  const at::Tensor step_BTH = at::softplus(exact(project(x_BTD, weight_HD)) + dt_bias_H);
  return {step_BTH, -exact(A_log_H).exp() * step_BTH};
}

void start_steps(const at::Tensor& A_log_H, const at::Tensor& dt_bias_H, const at::Tensor& distance_H) {
  A_log_H.detach().zero_();
  dt_bias_H.detach().copy_(inverse_softplus(-log_decay_of_distance(distance_H)));
}

nlohmann::ordered_json convolved_facts(const MixerSection&, const ModelSpec&) { return {{"convolution", kTaps}}; }

int64_t convolved_cache_bytes(const MixerSection& mixer, const ModelSpec& model, int64_t element) {
  return state_bytes(mixer, model, element) + (kTaps - 1) * 3 * model.heads * model.head_dim * element;
}

}  // namespace flashmorph
