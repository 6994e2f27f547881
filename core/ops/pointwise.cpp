// swiglu and rotate of norm.h.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "core/ops/norm.h"

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <class... Tensors>
bool has_kernel(const at::Tensor& first, const Tensors&... others) {
  const at::ScalarType type = first.scalar_type();
  return (type == at::kFloat || type == at::kDouble) && ((others.scalar_type() == type) && ...);
}

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate).mul_(up); }

std::tuple<at::Tensor, at::Tensor> swiglu_backward_composite(const at::Tensor& dy, const at::Tensor& gate,
                                                             const at::Tensor& up) {
  return {at::silu_backward(dy * up, gate), dy * at::silu(gate)};
}

// With s = sigmoid(gate): d_up = dy gate s;  d_gate = dy up s (1 + gate (1 - s)). s lies where d_up will be.
template <class Number>
void swiglu_backward_rows(const Number* __restrict dy, const Number* __restrict gate, const Number* __restrict up,
                          Number* __restrict d_gate, Number* __restrict s_then_d_up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Number s = s_then_d_up[i];
    d_gate[i] = dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
    s_then_d_up[i] = dy[i] * gate[i] * s;
  }
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy_any, const at::Tensor& gate_any,
                                                   const at::Tensor& up_any) {
  if (!has_kernel(gate_any, up_any, dy_any)) return swiglu_backward_composite(dy_any, gate_any, up_any);
  const at::Tensor dy = dy_any.contiguous(), gate = gate_any.contiguous(), up = up_any.contiguous();
  at::Tensor d_up = at::sigmoid(gate), d_gate = at::empty_like(gate);
  AT_DISPATCH_FLOATING_TYPES(gate.scalar_type(), "swiglu_backward", [&] {
    swiglu_backward_rows(dy.const_data_ptr<scalar_t>(), gate.const_data_ptr<scalar_t>(), up.const_data_ptr<scalar_t>(),
                         d_gate.data_ptr<scalar_t>(), d_up.data_ptr<scalar_t>(), gate.numel());
  });
  return {d_gate, d_up};
}

at::Tensor rotate_composite(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  const auto halves = x_BTHK.chunk(2, -1);
  const at::Tensor turned = at::cat({-halves[1], halves[0]}, -1);
  return (x_BTHK * cos_TK.unsqueeze(1) + turned * sin_TK.unsqueeze(1)).to(x_BTHK.scalar_type());
}

// The heads of one token share its angles.
template <class Number>
void rotate_heads(const Number* x, const Number* __restrict cos, const Number* __restrict sin, Number* __restrict y,
                  int64_t heads, int64_t half) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half)
    for (int64_t i = 0; i < half; ++i) {
      y[i] = x[i] * cos[i] - x[i + half] * sin[i];
      y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

at::Tensor rotate_forward(const at::Tensor& x_any, const at::Tensor& cos_any, const at::Tensor& sin_any) {
  if (!has_kernel(x_any, cos_any, sin_any)) return rotate_composite(x_any, cos_any, sin_any);
  const at::Tensor x = x_any.contiguous(), cos = cos_any.contiguous(), sin = sin_any.contiguous();
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), K = x.size(3);
  at::Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rotate", [&] {
    for (int64_t token = 0; token < B * T; ++token)
      rotate_heads(x.const_data_ptr<scalar_t>() + token * H * K, cos.const_data_ptr<scalar_t>() + token % T * K,
                   sin.const_data_ptr<scalar_t>() + token % T * K, y.data_ptr<scalar_t>() + token * H * K, H, K / 2);
  });
  return y;
}

// Without values: what the kernels allocate.
std::tuple<at::Tensor, at::Tensor> swiglu_backward_without_values(const at::Tensor&, const at::Tensor& gate,
                                                                  const at::Tensor& up) {
  return {at::empty_like(gate), at::empty_like(up)};
}

at::Tensor rotate_without_values(const at::Tensor& x_BTHK, const at::Tensor&, const at::Tensor&) {
  return at::empty(x_BTHK.sizes(), x_BTHK.options());
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct Swiglu : Function<Swiglu> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({gate, up});
    return swiglu(gate, up);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto op = operator_named<decltype(swiglu_backward)>("flashmorph::swiglu_backward");
    const variable_list saved = context->get_saved_variables();
    const auto [d_gate, d_up] = op.call(gradients[0], saved[0], saved[1]);
    return {d_gate, d_up};
  }
};

struct Rotate : Function<Rotate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({cos, sin});
    return rotate(x, cos, sin);
  }

  // The transposed rotation turns back; each half takes the other's sine.
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& sin = saved[1];
    return {rotate(gradients[0], saved[0], -sin.roll(sin.size(-1) / 2, -1)), at::Tensor(), at::Tensor()};
  }
};

at::Tensor swiglu_with_gradient(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(),
              "swiglu: gate and up must have one shape and dtype");
  return Swiglu::apply(gate, up);
}

at::Tensor rotate_with_gradient(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0, "rotate: x must be [B, T, H, K] with an even K");
  TORCH_CHECK(cos.dim() == 2 && cos.size(0) == x.size(1) && cos.size(1) == x.size(3) && sin.sizes() == cos.sizes(),
              "rotate: cos and sin must be [T, K] as x is [B, T, H, K]");
  return Rotate::apply(x, cos, sin);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  library.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)");
  library.def("rotate(Tensor x, Tensor cos, Tensor sin) -> Tensor");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("swiglu", swiglu_forward);
  library.impl("swiglu_backward", swiglu_backward_composite);
  library.impl("rotate", rotate_composite);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("swiglu_backward", swiglu_backward);
  library.impl("rotate", rotate_forward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("swiglu_backward", swiglu_backward_without_values);
  library.impl("rotate", rotate_without_values);
}

TORCH_LIBRARY_IMPL(flashmorph, Autograd, library) {
  library.impl("swiglu", swiglu_with_gradient);
  library.impl("rotate", rotate_with_gradient);
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  static const auto op = operator_named<decltype(swiglu)>("flashmorph::swiglu");
  return op.call(gate, up);
}

at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  static const auto op = operator_named<decltype(rotate)>("flashmorph::rotate");
  return op.call(x_BTHK, cos_TK, sin_TK);
}

}  // namespace flashmorph
