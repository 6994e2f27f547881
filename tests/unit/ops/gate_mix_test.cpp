#include "core/ops/gate_mix.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype = at::kDouble) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), dtype);
}

at::Tensor gate(double value) { return at::full({}, value, at::kDouble).set_requires_grad(true); }

TEST(GateMix, MixesAndSplitsTheGradient) {
  at::Tensor full = seeded({2, 5, 7}, 1).set_requires_grad(true), linear = seeded({2, 5, 7}, 2).set_requires_grad(true);
  const at::Tensor G = seeded({2, 5, 7}, 3), alpha = gate(0.3);
  const at::Tensor mixed = gate_mix(full, linear, alpha);
  EXPECT_LT(relative_error(0.3 * full + 0.7 * linear, mixed), 1e-15);
  mixed.backward(G);
  EXPECT_LT(relative_error(0.3 * G, full.grad()), 1e-15);
  EXPECT_LT(relative_error(0.7 * G, linear.grad()), 1e-15);
  EXPECT_EQ(alpha.grad().scalar_type(), at::kDouble);
  EXPECT_LT(relative_error((G * (full - linear)).sum(), alpha.grad()), 1e-14);
}

// Nearly equal branches and a gradient whose terms cancel: float32 sums would lose most of the digits.
TEST(GateMix, TheGateGradientIsAddedUpInFloat64) {
  const at::Tensor linear = seeded({64, 1037}, 1, at::kFloat), full = linear + 1e-3 * seeded({64, 1037}, 2, at::kFloat);
  const at::Tensor G = seeded({64, 1037}, 3, at::kFloat), alpha = gate(0.5);
  gate_mix(full, linear, alpha).backward(G);
  const at::Tensor expected = (G.to(at::kDouble) * (full - linear).to(at::kDouble)).sum();
  EXPECT_LT(relative_error(expected, alpha.grad()), 1e-11);
}

TEST(GateMix, TheGateGradientHasTheSameBitsOnAnyNumberOfThreads) {
  const at::Tensor full = seeded({97, 1031}, 1, at::kFloat), linear = seeded({97, 1031}, 2, at::kFloat);
  const at::Tensor G = seeded({97, 1031}, 3, at::kFloat);
  const int before = at::get_num_threads();
  const auto gradient = [&](int threads) {
    at::set_num_threads(threads);
    const at::Tensor alpha = gate(0.5);
    gate_mix(full, linear, alpha).backward(G);
    return alpha.grad().item<double>();
  };
  const double one = gradient(1), three = gradient(3);
  at::set_num_threads(before);
  EXPECT_EQ(one, three);
}

// Passes x on and counts how often a gradient comes back.
struct Probe : torch::autograd::Function<Probe> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int* count) {
    context->saved_data["count"] = reinterpret_cast<int64_t>(count);
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    ++*reinterpret_cast<int*>(context->saved_data["count"].toInt());
    return {gradients[0], at::Tensor()};
  }
};

class GateEnds : public testing::TestWithParam<double> {};

TEST_P(GateEnds, ABranchThatCountsNothingHasNoBackward) {
  const double a = GetParam();
  at::Tensor full = seeded({3, 4}, 1).set_requires_grad(true), linear = seeded({3, 4}, 2).set_requires_grad(true);
  int full_backwards = 0, linear_backwards = 0;
  const at::Tensor alpha = gate(a), G = seeded({3, 4}, 3);
  const at::Tensor mixed =
      gate_mix(Probe::apply(full, &full_backwards), Probe::apply(linear, &linear_backwards), alpha);
  mixed.backward(G);
  EXPECT_EQ(full_backwards, a == 0.0 ? 0 : 1);
  EXPECT_EQ(linear_backwards, a == 1.0 ? 0 : 1);
  EXPECT_EQ(full.grad().defined(), a != 0.0);
  EXPECT_EQ(linear.grad().defined(), a != 1.0);
  EXPECT_LT(relative_error((G * (full - linear)).sum(), alpha.grad()), 1e-14) << "the gate may come back from its end";
  if (a != 0.5) {
    EXPECT_TRUE(mixed.equal(a == 1.0 ? full : linear));
  }
}

INSTANTIATE_TEST_SUITE_P(GateMix, GateEnds, testing::Values(0.0, 0.5, 1.0));

TEST(GateMix, OnlyWhatIsAskedForGetsAGradient) {
  at::Tensor full = seeded({3, 4}, 1).set_requires_grad(true);
  const at::Tensor linear = seeded({3, 4}, 2), fixed = at::full({}, 0.25, at::kDouble);
  gate_mix(full, linear, fixed).sum().backward();
  EXPECT_LT(relative_error(at::full({3, 4}, 0.25, at::kDouble), full.grad()), 1e-15);
  EXPECT_FALSE(linear.grad().defined());
  EXPECT_FALSE(fixed.grad().defined());
}

TEST(GateMix, MisuseThrows) {
  const at::Tensor x = seeded({3, 4}, 1);
  EXPECT_ANY_THROW(gate_mix(x, x, at::ones({}, at::kFloat)));
  EXPECT_ANY_THROW(gate_mix(x, x, at::ones({1}, at::kDouble)));
  EXPECT_ANY_THROW(gate_mix(x, x.narrow(0, 0, 1), at::ones({}, at::kDouble)));
}

}  // namespace
}  // namespace flashmorph
