#include "core/ops/norm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/ops/activation.h"
#include "core/ops/rotation.h"
#include "tests/reference/pointwise.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor leaf(const at::Tensor& x, at::ScalarType type) {
  return x.detach().to(type).clone().set_requires_grad(true);
}

// `ours` in each dtype against `definition` in float64 on the same rounded inputs, forward and every gradient.
template <class Ours, class Definition>
void expect_definition(const std::vector<at::Tensor>& inputs, Ours ours, Definition definition) {
  const std::tuple<at::ScalarType, double> kinds[] = {{at::kDouble, 1e-12}, {at::kFloat, 2e-6}, {at::kBFloat16, 1e-2}};
  for (const auto& [type, tolerance] : kinds) {
    std::vector<at::Tensor> in, exact;
    for (const at::Tensor& x : inputs) {
      in.push_back(leaf(x, type));
      exact.push_back(leaf(in.back(), at::kDouble));
    }
    const at::Tensor actual = ours(in), expected = definition(exact);
    EXPECT_EQ(actual.scalar_type(), type);
    EXPECT_LT(relative_error(expected, actual), tolerance) << type;
    const at::Tensor upstream = at::randn_like(expected);
    actual.backward(upstream.to(type));
    expected.backward(upstream.to(type).to(at::kDouble));
    for (size_t i = 0; i < in.size(); ++i)
      EXPECT_LT(relative_error(exact[i].grad(), in[i].grad()), tolerance) << type << " gradient " << i;
  }
}

TEST(RmsNorm, IsItsDefinitionForwardAndBackward) {
  at::manual_seed(1);
  for (const int64_t width : {1, 5, 16, 37, 128})
    expect_definition(
        {at::randn({3, 5, width}), at::randn({width})}, [](const auto& in) { return rms_norm(in[0], in[1], 1e-2); },
        [](const auto& in) { return test::rms_norm_definition(in[0], in[1], 1e-2); });
}

TEST(RmsNorm, ReadsAnyStrides) {
  at::manual_seed(2);
  expect_definition(
      {at::randn({4, 6, 20}), at::randn({40})},
      [](const auto& in) { return rms_norm(in[0].transpose(0, 2), in[1].slice(0, 0, 40, 10), 1e-6); },
      [](const auto& in) { return test::rms_norm_definition(in[0].transpose(0, 2), in[1].slice(0, 0, 40, 10), 1e-6); });
}

TEST(RmsNorm, AFrozenWeightGetsNoGradientAndAFrozenInputNone) {
  const at::Tensor x = leaf(at::randn({2, 8}), at::kDouble), w = at::ones({8}, at::kDouble);
  rms_norm(x, w, 1e-6).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(w.grad().defined());

  const at::Tensor frozen = x.detach(), trained = leaf(w, at::kDouble);
  rms_norm(frozen, trained, 1e-6).sum().backward();
  EXPECT_TRUE(trained.grad().defined());
  EXPECT_FALSE(frozen.grad().defined());
}

TEST(RmsNorm, AZeroRowIsZeroWithAFiniteGradient) {
  const at::Tensor x = at::zeros({2, 8}).set_requires_grad(true);
  const at::Tensor y = rms_norm(x, at::ones({8}), 1e-6);
  EXPECT_EQ(y.abs().max().item<float>(), 0.0f);
  y.sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

TEST(AddAndNorm, IsBothForwardAndBackward) {
  at::manual_seed(8);
  for (const int64_t width : {1, 5, 37, 128})
    expect_definition(
        {at::randn({3, 5, width}), at::randn({3, 5, width}), at::randn({width})},
        [](const auto& in) {
          const auto [sum, normed] = add_and_norm(in[0], in[1], in[2], 1e-2);
          return at::cat({sum, normed});
        },
        [](const auto& in) {
          const at::Tensor sum = in[0] + in[1];
          return at::cat({sum, test::rms_norm_definition(sum, in[2], 1e-2)});
        });
}

TEST(AddAndNorm, HasTheBitsOfBothApart) {
  at::manual_seed(9);
  const at::Tensor x = leaf(at::randn({4, 48}), at::kFloat), y = leaf(at::randn({4, 48}), at::kFloat),
                   w = leaf(at::randn({48}), at::kFloat);
  const at::Tensor upstream = at::randn({4, 48});
  const auto pulls = [&](const at::Tensor& sum, const at::Tensor& normed) {
    return torch::autograd::grad({sum, normed}, {x, y, w}, {upstream, upstream.flip(0)});
  };
  const auto [sum, normed] = add_and_norm(x, y, w, 1e-6);
  const at::Tensor apart = x + y, normed_apart = rms_norm(apart, w, 1e-6);
  EXPECT_TRUE(at::equal(sum, apart) && at::equal(normed, normed_apart));
  const auto together = pulls(sum, normed), separate = pulls(apart, normed_apart);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(together[i], separate[i])) << i;
}

TEST(AddAndNorm, EitherOutputAloneIsPulledOn) {
  const at::Tensor x = leaf(at::randn({2, 8}), at::kDouble), y = leaf(at::randn({2, 8}), at::kDouble),
                   w = at::rand({8}, at::kDouble);
  const at::Tensor ones = at::ones({2, 8}, at::kDouble);
  add_and_norm(x, y, w, 1e-6).sum.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), ones) && at::equal(y.grad(), ones));

  const at::Tensor frozen = x.detach(), again = leaf(y, at::kDouble), alone = leaf(y, at::kDouble);
  add_and_norm(frozen, again, w, 1e-6).normed.sum().backward();
  rms_norm(frozen + alone, w, 1e-6).sum().backward();
  EXPECT_TRUE(at::equal(again.grad(), alone.grad()));
  EXPECT_FALSE(frozen.grad().defined() || w.grad().defined());
  EXPECT_THROW(add_and_norm(x, at::ones({2, 7}, at::kDouble), w, 1e-6), c10::Error);
}

TEST(RmsNorm, RefusesAWeightThatDoesNotFit) {
  EXPECT_THROW(rms_norm(at::ones({2, 8}), at::ones({7}), 1e-6), c10::Error);
  EXPECT_THROW(rms_norm(at::ones({2, 8}), at::ones({8}, at::kDouble), 1e-6), c10::Error);
}

TEST(Swiglu, IsItsDefinitionForwardAndBackward) {
  at::manual_seed(3);
  for (const double size : {1.0, 10.0})
    expect_definition(
        {at::randn({3, 5, 37}) * size, at::randn({3, 5, 37})}, [](const auto& in) { return swiglu(in[0], in[1]); },
        [](const auto& in) { return test::swiglu_definition(in[0], in[1]); });
}

TEST(Swiglu, ReadsAnyStrides) {
  at::manual_seed(4);
  expect_definition(
      {at::randn({3, 4, 5}), at::randn({5, 4, 3})}, [](const auto& in) { return swiglu(in[0].transpose(0, 2), in[1]); },
      [](const auto& in) { return test::swiglu_definition(in[0].transpose(0, 2), in[1]); });
}

TEST(Swiglu, LargeGatesSaturateWithoutNan) {
  const at::Tensor gate = at::tensor({-1e4, -90.0, 90.0, 1e4}, at::kFloat).set_requires_grad(true);
  const at::Tensor y = swiglu(gate, at::ones({4}));
  EXPECT_TRUE(at::allclose(y.detach(), at::tensor({0.0, 0.0, 90.0, 1e4}, at::kFloat)));
  y.sum().backward();
  EXPECT_TRUE(at::allclose(gate.grad(), at::tensor({0.0, 0.0, 1.0, 1.0}, at::kFloat)));
}

// Angles of T positions; `equal` halves as in the model, or free ones, where the backward must swap them.
std::pair<at::Tensor, at::Tensor> angles(int64_t T, int64_t K, bool equal) {
  const at::Tensor half = at::rand({T, K / 2}, at::kDouble) * 6.0;
  const at::Tensor both = at::cat({half, equal ? half : at::rand({T, K / 2}, at::kDouble)}, 1);
  return {both.cos(), both.sin()};
}

TEST(Rotate, IsAComplexProductForwardAndBackward) {
  at::manual_seed(5);
  for (const int64_t K : {2, 8, 32}) {
    const auto [cos, sin] = angles(7, K, true);
    // The tables are rounded like x, so the definition uses the rounded ones too.
    at::ScalarType type = at::kDouble;
    expect_definition(
        {at::randn({2, 7, 3, K})},
        [&](const auto& in) {
          type = in[0].scalar_type();
          return rotate(in[0], cos.to(type), sin.to(type));
        },
        [&](const auto& in) {
          return test::rotate_definition(in[0], cos.to(type).to(at::kDouble), sin.to(type).to(at::kDouble));
        });
  }
}

TEST(Rotate, BackwardIsTheTransposeForAnyTables) {
  at::manual_seed(6);
  const auto [cos, sin] = angles(5, 8, false);
  const at::Tensor x = leaf(at::randn({2, 3, 5, 8}).transpose(1, 2), at::kDouble);
  const at::Tensor direction = at::randn({2, 5, 3, 8}, at::kDouble), upstream = at::randn({2, 5, 3, 8}, at::kDouble);
  rotate(x, cos, sin).backward(upstream);
  const double forward = (rotate(direction, cos, sin) * upstream).sum().item<double>();  // <R d, u> = <d, R^T u>
  EXPECT_NEAR((direction * x.grad()).sum().item<double>(), forward, 1e-12);
}

TEST(Rotate, BehindANormIsBothForwardAndBackward) {
  at::manual_seed(7);
  const auto [cos, sin] = angles(5, 8, false);
  const at::Tensor upstream = at::randn({2, 5, 3, 8}, at::kDouble);
  const at::Tensor x = leaf(at::randn({2, 5, 3, 8}), at::kDouble), weight = leaf(at::randn({8}), at::kDouble);
  const at::Tensor x_again = leaf(x.detach(), at::kDouble), weight_again = leaf(weight.detach(), at::kDouble);
  const at::Tensor together = norm_and_rotate(x, weight, cos, sin, 1e-3);
  const at::Tensor apart = rotate(rms_norm(x_again, weight_again, 1e-3), cos, sin);
  together.backward(upstream);
  apart.backward(upstream);
  EXPECT_TRUE(at::equal(together, apart));
  EXPECT_TRUE(at::equal(x.grad(), x_again.grad()));
  EXPECT_TRUE(at::equal(weight.grad(), weight_again.grad()));
  EXPECT_THROW(norm_and_rotate(x, weight.detach().narrow(0, 0, 4), cos, sin, 1e-3), c10::Error);
}

TEST(Rotate, RefusesTablesThatDoNotFit) {
  const at::Tensor x = at::ones({2, 5, 3, 8}), table = at::ones({5, 8});
  EXPECT_THROW(rotate(x, table.narrow(0, 0, 4), table.narrow(0, 0, 4)), c10::Error);
  EXPECT_THROW(rotate(x, table, table.narrow(1, 0, 4)), c10::Error);
}

}  // namespace
}  // namespace flashmorph
