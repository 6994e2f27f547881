#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "core/config/run_config.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// What this rank computes on, and how its tensors reach the other ranks.
class RunDevice {
 public:
  // With kind cuda: opens CUDA, gives each rank of a host a card (in turn, when ranks outnumber cards) and takes NCCL
  // when no card is shared, else MPI through host memory. Collective over `host`, which outlives this; before the first
  // torch operation. `deadline`: seconds that a call of NCCL may take; one behind a slow peer waits for that peer's
  // whole step. BadInput where CUDA is missing or there is no card.
  RunDevice(const DeviceSection& config, Communicator& host, double deadline);

  const at::Device& place() const { return place_; }
  Communicator& world() { return world_ ? *world_ : host_; }
  const std::string& description() const { return description_; }  // "8 ranks on 8 cards, NVIDIA H200: NCCL"

 private:
  at::Device place_ = at::kCPU;
  Communicator& host_;
  std::unique_ptr<Communicator> world_;
  std::string description_ = "cpu";
};

}  // namespace flashmorph
