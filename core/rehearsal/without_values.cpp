#include "core/rehearsal/without_values.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/_to_copy_native.h>
#include <torch/library.h>

#include <tuple>

// The operators of ATen that have no form for the meta device in C++. Letters: B batch, H heads, T tokens, K head dim.

namespace flashmorph {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor index_select(const at::Tensor& x, int64_t dim, const at::Tensor& index) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[static_cast<size_t>(at::maybe_wrap_dim(dim, x.dim()))] = index.numel();
  return at::empty(sizes, x.options());
}

at::Tensor embedding_dense_backward(const at::Tensor& dy, const at::Tensor&, c10::SymInt rows, c10::SymInt, bool) {
  return at::empty({rows.expect_int(), dy.size(-1)}, dy.options());
}

at::Tensor same(const at::Tensor& x) { return at::empty_like(x, at::MemoryFormat::Contiguous); }

std::tuple<at::Tensor, at::Tensor> log_sigmoid_forward(const at::Tensor& x) { return {same(x), same(x)}; }
at::Tensor log_sigmoid_backward(const at::Tensor&, const at::Tensor& x, const at::Tensor&) { return same(x); }
at::Tensor flip(const at::Tensor& x, at::IntArrayRef) { return same(x); }
at::Tensor roll(const at::Tensor& x, at::SymIntArrayRef, at::IntArrayRef) { return same(x); }
at::Tensor solve_triangular(const at::Tensor&, const at::Tensor& b, bool, bool, bool) { return same(b); }
at::Tensor logical(const at::Tensor& a, const at::Tensor& b) {
  return at::empty(at::infer_size(a.sizes(), b.sizes()), a.options().dtype(at::kBool));
}
at::Tensor where(const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor& like = a.dim() > 0 ? a : b;
  return at::empty(at::infer_size(condition.sizes(), at::infer_size(a.sizes(), b.sizes())), like.options());
}
at::Tensor product_as(const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype) {
  return at::empty({a.size(0), b.size(1)}, a.options().dtype(dtype));
}
at::Tensor scaled_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor&, const at::Tensor&,
                          const OptionalTensor&, const OptionalTensor&, std::optional<at::ScalarType> dtype, bool) {
  return product_as(a, b, dtype.value_or(a.scalar_type()));
}

at::Tensor& product_added(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::ScalarType, const at::Scalar&,
                          const at::Scalar&, at::Tensor& sum) {
  return sum;
}

at::Scalar value_on_host(const at::Tensor& x) { return x.is_floating_point() ? at::Scalar(1.0) : at::Scalar(1); }

at::Tensor copied_to(const at::Tensor& x, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                     std::optional<at::Device> device, std::optional<bool> pinned, bool non_blocking,
                     std::optional<at::MemoryFormat> format) {
  if (device && device->is_cpu()) return at::ones(x.sizes(), dtype.value_or(x.scalar_type()));
  return at::native::_to_copy(x, dtype, layout, device, pinned, non_blocking, format);
}

void fused_adamw(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList, double,
                 double, double, double, double, bool, bool, const OptionalTensor&, const OptionalTensor&) {}

// The flash kernels lay out tokens before heads, and keep the logarithm of each row's sum.
at::Tensor like_heads(const at::Tensor& x_BHTK) {
  return at::empty({x_BHTK.size(0), x_BHTK.size(2), x_BHTK.size(1), x_BHTK.size(3)}, x_BHTK.options()).transpose(1, 2);
}

std::tuple<at::Tensor, at::Tensor> flash_attention(const at::Tensor& q_BHTK, const at::Tensor&, const at::Tensor&,
                                                   double, bool, const OptionalTensor&, std::optional<double>) {
  const auto exact = q_BHTK.options().dtype(at::toOpMathType(q_BHTK.scalar_type()));
  return {like_heads(q_BHTK), at::empty({q_BHTK.size(0), q_BHTK.size(1), q_BHTK.size(2)}, exact)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_attention_backward(const at::Tensor&, const at::Tensor& q,
                                                                        const at::Tensor& k, const at::Tensor& v,
                                                                        const at::Tensor&, const at::Tensor&, double,
                                                                        bool, const OptionalTensor&,
                                                                        std::optional<double>) {
  return {like_heads(q), like_heads(k), like_heads(v)};
}

// Without a device to ask, LibTorch would take the form that makes all scores.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& mask,
                     double dropout, bool is_causal, std::optional<double> scale, bool) {
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, is_causal, mask, scale));
}

struct Registrations {
  torch::Library meta{torch::Library::IMPL, "aten", c10::DispatchKey::Meta, __FILE__, __LINE__};
  torch::Library autograd{torch::Library::IMPL, "aten", c10::DispatchKey::AutogradMeta, __FILE__, __LINE__};

  Registrations() {
    meta.impl("index_select", index_select);
    meta.impl("embedding_dense_backward", embedding_dense_backward);
    meta.impl("log_sigmoid_forward", log_sigmoid_forward);
    meta.impl("log_sigmoid_backward", log_sigmoid_backward);
    meta.impl("flip", flip);
    meta.impl("roll", roll);
    meta.impl("linalg_solve_triangular", solve_triangular);
    meta.impl("logical_and", logical);
    meta.impl("logical_or", logical);
    meta.impl("where.self", where);
    meta.impl("mm.dtype", product_as);
    meta.impl("addmm.dtype_out", product_added);
    meta.impl("_scaled_mm", scaled_product);
    meta.impl("_local_scalar_dense", value_on_host);
    meta.impl("_to_copy", copied_to);
    meta.impl("_fused_adamw_", fused_adamw);
    meta.impl("_scaled_dot_product_flash_attention_for_cpu", flash_attention);
    meta.impl("_scaled_dot_product_flash_attention_for_cpu_backward", flash_attention_backward);
    autograd.impl("scaled_dot_product_attention", attention);
  }
};

}  // namespace

void allow_steps_without_values() {
  static const Registrations* const registered = new Registrations;
  (void)registered;
}

}  // namespace flashmorph
