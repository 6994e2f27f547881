#include <torch/library.h>

#include <optional>

#include "core/ops/cuda/tensors.h"
#include "core/ops/cuda/vocabulary_kernels.h"

// softmax_sums and softmax_gradient on the card.

namespace flashmorph::cuda {
namespace {

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& x) {
  return x ? std::optional(x->contiguous()) : std::nullopt;
}

const void* data_or_null(const std::optional<at::Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

at::Tensor sums_of(const at::Tensor& logits_any, const std::optional<at::Tensor>& teacher_any) {
  const c10::cuda::CUDAGuard guard(logits_any.device());
  const at::Tensor logits = logits_any.contiguous();
  const std::optional<at::Tensor> teacher = contiguous(teacher_any);
  const int64_t rows = logits.size(0), width = logits.size(1);
  at::Tensor sums = at::empty({teacher ? 5 : 2, rows}, logits.options().dtype(at::kDouble));
  softmax_sums(element_of(logits), logits.const_data_ptr(), data_or_null(teacher), sums.data_ptr<double>(), rows, width,
               stream_of(logits));
  return sums;
}

at::Tensor gradient_of(const at::Tensor& logits_any, const std::optional<at::Tensor>& teacher_any,
                       const std::optional<at::Tensor>& column_any, const at::Tensor& sums_any, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(logits_any.device());
  const at::Tensor logits = logits_any.contiguous(), sums = sums_any.contiguous();
  const std::optional<at::Tensor> teacher = contiguous(teacher_any), column = contiguous(column_any);
  at::Tensor gradient = at::empty(logits.sizes(), logits.options().dtype(dtype));
  softmax_gradient(element_of(logits), element_of(gradient), logits.const_data_ptr(), data_or_null(teacher),
                   column ? column->const_data_ptr<int64_t>() : nullptr, sums.const_data_ptr<double>(),
                   gradient.data_ptr(), logits.size(0), logits.size(1), stream_of(logits));
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("softmax_sums", sums_of);
  library.impl("softmax_gradient", gradient_of);
}

}  // namespace flashmorph::cuda
