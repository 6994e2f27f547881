#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// What one rank's hardware gives, at its best of a few runs, while every rank is at it.
struct Rates {
  double product = 0.0;  // FLOP/s of a matrix product
  double memory = 0.0;   // bytes/s that a copy reads and writes
  double link = 0.0;     // bytes/s that an all-reduce with the next rank takes; 0: there is no next one
};

// Of this rank, on `device`, in a few seconds. Collective.
Rates measured_rates(Communicator& world, const at::Device& device, at::ScalarType dtype);

// By rank, on every rank. Collective.
std::vector<Rates> gather_rates(const Rates& mine, Communicator& world);

// "2 ranks: matrix product 45.1 to 46.0 GFLOP/s, memory ...".
std::string text_of(const std::vector<Rates>& ranks);

// A warning for each rank and link far below the median of its like; links inside a host and between hosts are not
// alike. Hosts by rank.
std::vector<std::string> odd_rates(const std::vector<Rates>& ranks, const std::vector<std::string>& hosts);

}  // namespace flashmorph
