#include "core/ops/activation.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <tuple>
#include <vector>

#include "core/ops/operator.h"
#include "core/ops/vectorised.h"

namespace flashmorph {
namespace {

template <class... Tensors>
bool has_kernel(const at::Tensor& first, const Tensors&... others) {
  const at::ScalarType type = first.scalar_type();
  return (type == at::kFloat || type == at::kDouble) && ((others.scalar_type() == type) && ...);
}

at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate).mul_(up); }

std::tuple<at::Tensor, at::Tensor> backward_composite(const at::Tensor& dy, const at::Tensor& gate,
                                                      const at::Tensor& up) {
  return {at::silu_backward(dy * up, gate), dy * at::silu(gate)};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> room_for_swiglu_gradients(const at::Tensor& gate, const at::Tensor& up) {
  const int64_t F = gate.size(-1);
  if (gate.dim() > 3) return {at::empty(gate.sizes(), gate.options()), at::empty(up.sizes(), up.options())};
  std::vector<int64_t> sizes = gate.sizes().vec();
  sizes.back() = 2 * F;
  const at::Tensor both = at::empty(sizes, gate.options());
  return {both.narrow(-1, 0, F), both.narrow(-1, F, F)};
}

namespace {

// With s = sigmoid(gate): d_up = dy gate s;  d_gate = dy up s (1 + gate (1 - s)). s lies where d_up will be.
template <class Number>
FLASHMORPH_VECTORISED void backward_rows(const Number* __restrict dy, const Number* __restrict gate,
                                         const Number* __restrict up, Number* __restrict d_gate,
                                         Number* __restrict s_then_d_up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Number s = s_then_d_up[i];
    d_gate[i] = dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
    s_then_d_up[i] = dy[i] * gate[i] * s;
  }
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& dy_any, const at::Tensor& gate_any,
                                            const at::Tensor& up_any) {
  if (!has_kernel(gate_any, up_any, dy_any)) return backward_composite(dy_any, gate_any, up_any);
  const at::Tensor dy = dy_any.contiguous(), gate = gate_any.contiguous(), up = up_any.contiguous();
  at::Tensor d_up = at::sigmoid(gate), d_gate = at::empty_like(gate);
  AT_DISPATCH_FLOATING_TYPES(gate.scalar_type(), "swiglu_backward", [&] {
    backward_rows(dy.const_data_ptr<scalar_t>(), gate.const_data_ptr<scalar_t>(), up.const_data_ptr<scalar_t>(),
                  d_gate.data_ptr<scalar_t>(), d_up.data_ptr<scalar_t>(), gate.numel());
  });
  return {d_gate, d_up};
}

// Without values: what a card's kernel allocates.
std::tuple<at::Tensor, at::Tensor> backward_without_values(const at::Tensor&, const at::Tensor& gate,
                                                           const at::Tensor& up) {
  return room_for_swiglu_gradients(gate, up);
}

struct Swiglu : Operator {
  static constexpr const char* kName = "swiglu";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 2> kTrained = {0, 1};
  static void check(const at::Tensor& gate, const at::Tensor& up) {
    TORCH_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(),
                "swiglu: gate and up must have one shape and dtype");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<Swiglu>(library, "(Tensor gate, Tensor up) -> Tensor",
                  "(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("swiglu", forward);
  library.impl("swiglu_backward", backward_composite);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) { library.impl("swiglu_backward", backward); }

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) { library.impl("swiglu_backward", backward_without_values); }

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return call<Swiglu>(gate, up); }

}  // namespace flashmorph
