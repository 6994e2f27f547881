#include <torch/library.h>

#include <vector>

#include "core/ops/operator.h"

// scalar_gated_attention of linear_attention.h on the card: gated_linear_attention whose channels all decay alike.
// Letters: B batch, T tokens, H heads, K key dim.

namespace flashmorph::cuda {
namespace {

at::Tensor of_channels(const at::Tensor& g_BTH, const at::Tensor& q_BTHK) {
  return g_BTH.unsqueeze(-1).expand_as(q_BTHK).contiguous();
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const at::Tensor& g_BTH, const OptionalTensor& initial,
                                           const OptionalTensor& documents, double scale, int64_t chunk) {
  static const auto gated = detail::find<decltype(forward)>("gated_linear_attention");
  return gated.call(q, k, v, of_channels(g_BTH, q), initial, documents, scale, chunk);
}

std::vector<at::Tensor> backward(const at::Tensor& d_output, const OptionalTensor& d_final, const at::Tensor& q,
                                 const at::Tensor& k, const at::Tensor& v, const at::Tensor& g_BTH,
                                 const OptionalTensor& initial, const OptionalTensor& documents, double scale,
                                 int64_t chunk) {
  static const auto gated = detail::find<decltype(backward)>("gated_linear_attention_backward");
  std::vector<at::Tensor> found =
      gated.call(d_output, d_final, q, k, v, of_channels(g_BTH, q), initial, documents, scale, chunk);
  found[3] = found[3].sum(-1);
  return found;
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("scalar_gated_attention", forward);
  library.impl("scalar_gated_attention_backward", backward);
}

}  // namespace flashmorph::cuda
