#include "core/ops/short_convolution.h"

#include <torch/library.h>

#include <array>
#include <tuple>

#include "core/ops/cuda/part_sums.h"
#include "core/ops/cuda/short_convolution_kernels.h"
#include "core/ops/cuda/tensors.h"

// short_convolution on the card: a kernel forward, and one for both gradients.

namespace flashmorph::cuda {
namespace {

using Optional = std::optional<at::Tensor>;

bool has_kernel(const at::Tensor& x, const at::Tensor& weight) { return weight.size(1) <= kMostTaps && x.numel() > 0; }

// Contiguous, and alive while the kernels are started.
struct Call {
  at::Tensor x, weight, past, place;
  bool silu;

  Call(const at::Tensor& x_BTC, const at::Tensor& weight_CW, const Optional& past_BPC, const Optional& place_T,
       bool silu)
      : x(x_BTC.contiguous()), weight(weight_CW.contiguous()), silu(silu) {
    if (past_BPC) past = past_BPC->to(x.scalar_type()).contiguous();
    if (place_T) place = place_T->to(at::kInt).contiguous();
  }

  Convolution convolution() const {
    return {.x_BTC = x.const_data_ptr(),
            .weight_CW = weight.const_data_ptr(),
            .past_BPC = data_or_null(past),
            .place_T = place.defined() ? place.const_data_ptr<int>() : nullptr,
            .rows = static_cast<int>(x.size(0)),
            .tokens = static_cast<int>(x.size(1)),
            .channels = static_cast<int>(x.size(2)),
            .taps = static_cast<int>(weight.size(1)),
            .past = past.defined() ? static_cast<int>(past.size(1)) : 0,
            .silu = silu};
  }
};

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const Optional& past, const Optional& place,
                   bool silu) {
  if (!has_kernel(x, weight)) return composed_convolution(x, weight, past, place, silu);
  const c10::cuda::CUDAGuard guard(x.device());
  const Call call(x, weight, past, place, silu);
  at::Tensor y = at::empty_like(call.x);
  convolve(element_of(x), call.convolution(), y.data_ptr(), stream_of(x));
  return y;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& dy_any, const at::Tensor& x, const at::Tensor& weight,
                                            const Optional& past, const Optional& place, bool silu,
                                            std::array<bool, 2> wanted) {
  if (!has_kernel(x, weight)) return composed_convolution_gradients(dy_any, x, weight, past, place, silu, wanted);
  const c10::cuda::CUDAGuard guard(x.device());
  const Call call(x, weight, past, place, silu);
  const Convolution of = call.convolution();
  const at::Tensor dy = dy_any.contiguous();
  const at::Tensor dx = at::empty_like(call.x);
  at::Tensor partial;
  if (wanted[1])
    partial = at::empty({weight_gradient_parts(element_of(x), of), of.channels, of.taps}, accumulator_of(x));
  convolve_backward(element_of(x), of, dy.const_data_ptr(), dx.data_ptr(), data_or_null(partial), stream_of(x));
  return {dx, wanted[1] ? sum_of_parts(partial, call.weight) : at::Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("short_convolution", forward);
  library.impl("short_convolution_backward", backward);
}

}  // namespace flashmorph::cuda
