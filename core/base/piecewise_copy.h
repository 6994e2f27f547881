#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace flashmorph {

struct PiecewiseCopying {
  size_t threads = 1;
  int64_t piece = int64_t{32} << 20;  // bytes; a row at least
};

// How copies between the host and such a device come soonest.
PiecewiseCopying copying_with(at::Device device);

// Copies the first of each pair into the second, which has its shape and may have another dtype; done when this
// returns. Between a card and the host the pieces (rows of dim 0) go through page-locked memory, on several threads: on
// one the system would hold up the card, which clears each page of fresh memory, and looks up each page of a mapped
// file, when it is first touched.
void copy_in_pieces(const std::vector<std::pair<at::Tensor, at::Tensor>>& pairs, const PiecewiseCopying& how);

// Copies in the host's memory, contiguous, of tensors of one device.
std::vector<at::Tensor> copied_to_host(const std::vector<at::Tensor>& tensors, const PiecewiseCopying& how);

}  // namespace flashmorph
