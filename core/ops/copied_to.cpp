#include "core/ops/copied_to.h"

#include <ATen/ATen.h>

namespace flashmorph {

at::Tensor copied_to(at::Device device, const at::Tensor& on_host) {
  return device.is_cuda() ? on_host.pin_memory().to(device, /*non_blocking=*/true) : on_host.to(device);
}

}  // namespace flashmorph
