#include "core/ops/squared_distance.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include "core/ops/operator.h"

namespace flashmorph {
namespace {

at::Tensor difference(const at::Tensor& a, const at::Tensor& b) { return a.to(at::toOpMathType(a.scalar_type())) - b; }

at::Tensor forward(const at::Tensor& a, const at::Tensor& b) {
  return difference(a, b).to(at::kDouble).square_().sum();
}

at::Tensor backward(const at::Tensor& upstream, const at::Tensor& a, const at::Tensor& b) {
  return (difference(a, b) * (2.0 * upstream)).to(a.scalar_type());
}

struct SquaredDistance : Operator {
  static constexpr const char* kName = "squared_distance";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 1> kTrained = {0};
  static void check(const at::Tensor& a, const at::Tensor& b) {
    TORCH_CHECK(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(),
                "squared_distance: both must have one shape and dtype");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<SquaredDistance>(library, "(Tensor a, Tensor b) -> Tensor",
                           "(Tensor upstream, Tensor a, Tensor b) -> Tensor");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("squared_distance", forward);
  library.impl("squared_distance_backward", backward);
}

at::Tensor squared_distance(const at::Tensor& a, const at::Tensor& b) { return call<SquaredDistance>(a, b); }

at::Tensor squared_distance_gradient(const at::Tensor& upstream, const at::Tensor& a, const at::Tensor& b) {
  SquaredDistance::check(a, b);
  return detail::backward_of<SquaredDistance>().call(upstream, a, b);
}

}  // namespace flashmorph
