#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// A copy on the device, without waiting for what that still has to do: by way of page-locked memory, which is given
// back when the copy is done. On a device without such memory a plain copy, or the tensor itself.
at::Tensor copied_to(at::Device device, const at::Tensor& on_host);

}  // namespace flashmorph
