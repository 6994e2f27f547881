#include "core/ops/rotation.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <array>
#include <tuple>

#include "core/ops/norm.h"
#include "core/ops/operator.h"
#include "core/ops/vectorised.h"

namespace flashmorph {
namespace {

at::Tensor forward_composite(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  const auto halves = x_BTHK.chunk(2, -1);
  const at::Tensor turned = at::cat({-halves[1], halves[0]}, -1);
  return (x_BTHK * cos_TK.unsqueeze(1) + turned * sin_TK.unsqueeze(1)).to(x_BTHK.scalar_type());
}

// The transposed rotation turns back; each half takes the other's sine.
at::Tensor backward_composite(const at::Tensor& dy_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  return forward_composite(dy_BTHK, cos_TK, -sin_TK.roll(sin_TK.size(-1) / 2, -1));
}

// y[i] = x[i] cos[i] - x[i + half] sin1[i] and y[i + half] = x[i + half] cos[i + half] + x[i] sin2[i]. The heads of one
// token share its angles.
template <bool kBack, class Number>
FLASHMORPH_VECTORISED void rotate_heads(const Number* x, const Number* __restrict cos, const Number* __restrict sin,
                                        Number* __restrict y, int64_t heads, int64_t half) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half)
    for (int64_t i = 0; i < half; ++i) {
      const Number sin1 = kBack ? -sin[i + half] : sin[i], sin2 = kBack ? -sin[i] : sin[i + half];
      y[i] = x[i] * cos[i] - x[i + half] * sin1;
      y[i + half] = x[i + half] * cos[i + half] + x[i] * sin2;
    }
}

template <bool kBack>
at::Tensor rotated(const at::Tensor& x_any, const at::Tensor& cos_any, const at::Tensor& sin_any) {
  const at::ScalarType type = x_any.scalar_type();
  const bool has_kernel =
      (type == at::kFloat || type == at::kDouble) && cos_any.scalar_type() == type && sin_any.scalar_type() == type;
  if (!has_kernel) return (kBack ? backward_composite : forward_composite)(x_any, cos_any, sin_any);
  const at::Tensor x = x_any.contiguous(), cos = cos_any.contiguous(), sin = sin_any.contiguous();
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), K = x.size(3);
  at::Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rotate", [&] {
    for (int64_t token = 0; token < B * T; ++token)
      rotate_heads<kBack>(x.const_data_ptr<scalar_t>() + token * H * K, cos.const_data_ptr<scalar_t>() + token % T * K,
                          sin.const_data_ptr<scalar_t>() + token % T * K, y.data_ptr<scalar_t>() + token * H * K, H,
                          K / 2);
  });
  return y;
}

// Without values: what the kernel allocates.
at::Tensor without_values(const at::Tensor& x_BTHK, const at::Tensor&, const at::Tensor&) {
  return at::empty(x_BTHK.sizes(), x_BTHK.options());
}

struct Rotate : Operator {
  static constexpr const char* kName = "rotate";
  using Forward = decltype(rotated<false>);
  using Backward = decltype(rotated<true>);
  static constexpr std::array<size_t, 1> kTrained = {0}, kUnread = {0};
  static void check(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0, "rotate: x must be [B, T, H, K] with an even K");
    TORCH_CHECK(cos.dim() == 2 && cos.size(0) == x.size(1) && cos.size(1) == x.size(3) && sin.sizes() == cos.sizes(),
                "rotate: cos and sin must be [T, K] as x is [B, T, H, K]");
  }
};

at::Tensor norm_then_rotate(const at::Tensor& x_BTHK, const at::Tensor& weight_K, const at::Tensor& cos_TK,
                            const at::Tensor& sin_TK, double epsilon) {
  return rotate(rms_norm(x_BTHK, weight_K, epsilon), cos_TK, sin_TK);
}

std::tuple<at::Tensor, at::Tensor> backward_through_both(const at::Tensor& dy_BTHK, const at::Tensor& x_BTHK,
                                                         const at::Tensor& weight_K, const at::Tensor& cos_TK,
                                                         const at::Tensor& sin_TK, double epsilon,
                                                         std::array<bool, 2> wanted) {
  using NormBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                          double, std::array<bool, 2>);
  static const auto norm_backward = detail::find<NormBackward>("rms_norm_backward");
  const at::Tensor d_normed = detail::backward_of<Rotate>().call(dy_BTHK, cos_TK, sin_TK);
  return norm_backward.call(d_normed, x_BTHK, weight_K, epsilon, wanted);
}

struct NormAndRotate : Operator {
  static constexpr const char* kName = "norm_and_rotate";
  using Forward = decltype(norm_then_rotate);
  using Backward = decltype(backward_through_both);
  static constexpr std::array<size_t, 2> kTrained = {0, 1};
  static void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos, const at::Tensor& sin,
                    double) {
    Rotate::check(x, cos, sin);
    TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(3) && weight.scalar_type() == x.scalar_type(),
                "norm_and_rotate: the weight must have the size and dtype of x's last dim");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<Rotate>(library, "(Tensor x, Tensor cos, Tensor sin) -> Tensor",
                  "(Tensor dy, Tensor cos, Tensor sin) -> Tensor");
  declare<NormAndRotate>(library, "(Tensor x, Tensor weight, Tensor cos, Tensor sin, float epsilon) -> Tensor",
                         "(Tensor dy, Tensor x, Tensor weight, Tensor cos, Tensor sin, float epsilon, bool[2] wanted)"
                         " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("rotate", forward_composite);
  library.impl("rotate_backward", backward_composite);
  library.impl("norm_and_rotate", norm_then_rotate);
  library.impl("norm_and_rotate_backward", backward_through_both);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("rotate", rotated<false>);
  library.impl("rotate_backward", rotated<true>);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("rotate", without_values);
  library.impl("rotate_backward", without_values);
}

at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  return call<Rotate>(x_BTHK, cos_TK, sin_TK);
}

at::Tensor norm_and_rotate(const at::Tensor& x_BTHK, const at::Tensor& weight_K, const at::Tensor& cos_TK,
                           const at::Tensor& sin_TK, double epsilon) {
  return call<NormAndRotate>(x_BTHK, weight_K, cos_TK, sin_TK, epsilon);
}

}  // namespace flashmorph
