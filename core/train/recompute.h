#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace flashmorph {

using TensorFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& inputs)>;

// function(inputs), of which only the inputs are kept for the backward pass: there the function runs once more, this
// time with its graph (activation checkpointing, arXiv 1604.06174). `trained`: leaves that the function reaches by
// itself and that need gradients. The function must give the same values both times; what it refers to must outlive the
// backward pass. Without gradients to come it is just called.
std::vector<at::Tensor> recomputed(const TensorFunction& function, const std::vector<at::Tensor>& inputs,
                                   const std::vector<at::Tensor>& trained);

}  // namespace flashmorph
