#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashmorph {

struct HostCopying {
  size_t threads = 1;
  int64_t piece = int64_t{32} << 20;  // bytes; a row at least
};

// How copies from such a device come soonest.
HostCopying host_copying_from(at::Device device);

// Copies in the host's memory, contiguous, done when this returns. tensors: [rows, columns], of one device. From a card
// they come in pieces through page-locked memory, on several threads: on one the system, which clears each page of the
// copies when it is first touched, would hold up the card.
std::vector<at::Tensor> copied_to_host(const std::vector<at::Tensor>& tensors, const HostCopying& how);

}  // namespace flashmorph
