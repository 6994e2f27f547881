#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace flashmorph {

// Causal convolution of each channel over its own last few tokens, a registered torch operator on every device:
//     y_t = sum over lags l of weight[:, W - 1 - l] * x_{t - l},  l = 0 .. W - 1
// x_BTC; weight_CW, the last tap is the token itself. past_BPC: the tokens before x (zeros when absent), a constant.
// place_T (any integers, on x's device): where each token stands in its own document, when several are packed in a row;
// each is convolved apart. Without past.
// Differentiable in x and weight; saves nothing but its inputs.
at::Tensor short_convolution(const at::Tensor& x_BTC, const at::Tensor& weight_CW,
                             const std::optional<at::Tensor>& past_BPC, const std::optional<at::Tensor>& place_T);

}  // namespace flashmorph
