#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace flashmorph {

// Causal convolution of each channel over its own last few tokens, a registered torch operator on every device:
//     y_t = f(sum over lags l of weight[:, W - 1 - l] * x_{t - l}),  l = 0 .. W - 1;  f(z) = z, or silu(z) when `silu`
// x_BTC; weight_CW, the last tap is the token itself. past_BPC: the tokens before x (zeros when absent), a constant.
// place_T (any integers, on x's device): where each token stands in its own document, when several are packed in a row;
// each is convolved apart. Without past.
// Differentiable in x and weight; saves nothing but its inputs.
at::Tensor short_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW,
                             const std::optional<at::Tensor>& past_BPC, const std::optional<at::Tensor>& place_T,
                             bool silu);

// The operator and its gradients (of x, and of weight if wanted[1]) made of torch's, on any device: what a device has
// no kernel for.
at::Tensor composed_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW,
                                const std::optional<at::Tensor>& past_BPC, const std::optional<at::Tensor>& place_T,
                                bool silu);
std::tuple<at::Tensor, at::Tensor> composed_convolution_gradients(const at::Tensor& dy_BTC, const at::Tensor& x_BTC,
                                                                  const at::Tensor& weight_CW,
                                                                  const std::optional<at::Tensor>& past_BPC,
                                                                  const std::optional<at::Tensor>& place_T, bool silu,
                                                                  std::array<bool, 2> wanted);

}  // namespace flashmorph
