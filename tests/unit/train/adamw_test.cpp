#include "core/train/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

constexpr AdamW::Options kOptions{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};

double rate_at(int step) { return 0.01 / (1.0 + 0.2 * step); }

// Gradients of several magnitudes, zeros among them, new ones every step.
double gradient_at(int step, int64_t element) {
  return element % 7 == 3 ? 0.0
                          : std::sin(1.0 + 0.7 * step + 1.3 * static_cast<double>(element)) *
                                std::pow(10.0, static_cast<double>(element % 5 - 2));
}

at::Tensor gradients_at(int step, int64_t first, at::IntArrayRef shape, at::ScalarType dtype) {
  at::Tensor gradient = at::empty(shape, at::kDouble);
  for (int64_t i = 0; i < gradient.numel(); ++i) gradient.data_ptr<double>()[i] = gradient_at(step, first + i);
  return gradient.to(dtype);
}

// Algorithm 2 of Loshchilov & Hutter (2019), one number at a time.
double by_definition(double theta, int64_t element, int steps) {
  double m = 0.0, v = 0.0;
  for (int t = 1; t <= steps; ++t) {
    const double g = gradient_at(t - 1, element), rate = rate_at(t - 1);
    m = kOptions.beta1 * m + (1.0 - kOptions.beta1) * g;
    v = kOptions.beta2 * v + (1.0 - kOptions.beta2) * g * g;
    const double m_hat = m / (1.0 - std::pow(kOptions.beta1, t)), v_hat = v / (1.0 - std::pow(kOptions.beta2, t));
    theta -= rate * (m_hat / (std::sqrt(v_hat) + kOptions.epsilon) + kOptions.weight_decay * theta);
  }
  return theta;
}

class AdamWIn : public testing::TestWithParam<at::ScalarType> {};

TEST_P(AdamWIn, FollowsThePaperForTwentySteps) {
  const at::ScalarType dtype = GetParam();
  const std::vector<std::vector<int64_t>> shapes = {{3, 17}, {40}, {}};
  std::vector<at::Tensor> parameters, expected;
  std::vector<int64_t> first;
  int64_t elements = 0;
  for (const std::vector<int64_t>& shape : shapes) {
    parameters.push_back(at::linspace(-2, 3, c10::multiply_integers(shape), at::kDouble).view(shape).to(dtype));
    expected.push_back(parameters.back().to(at::kDouble, /*non_blocking=*/false, /*copy=*/true));
    first.push_back(elements);
    elements += parameters.back().numel();
  }
  for (size_t p = 0; p < shapes.size(); ++p)
    for (int64_t i = 0; i < expected[p].numel(); ++i) {
      double& theta = expected[p].data_ptr<double>()[i];
      theta = by_definition(theta, first[p] + i, 20);
    }
  for (const at::Tensor& parameter : parameters) parameter.set_requires_grad(true);

  AdamW optimizer(parameters, kOptions);
  for (int step = 0; step < 20; ++step) {
    std::vector<at::Tensor> gradients;
    for (size_t p = 0; p < shapes.size(); ++p) gradients.push_back(gradients_at(step, first[p], shapes[p], dtype));
    optimizer.step(gradients, rate_at(step));
  }
  const double tolerance = dtype == at::kDouble ? 1e-13 : 3e-6;
  for (size_t p = 0; p < shapes.size(); ++p)
    EXPECT_LT(test::max_abs_error(expected[p], parameters[p]), tolerance) << "parameter " << p;
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AdamWIn, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& dtype) { return std::string(c10::toString(dtype.param)); });

// torch.optim.AdamW([1, -2, 0.5], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1), gradients [0.3, -1, 20] * (step + 1).
TEST(AdamW, ReachesTheNumbersOfTorchOptim) {
  const at::Tensor parameter = at::tensor({1.0, -2.0, 0.5}, at::kDouble);
  AdamW optimizer({parameter}, kOptions);
  for (int step = 0; step < 20; ++step) optimizer.step({at::tensor({0.3, -1.0, 20.0}, at::kDouble) * (step + 1)}, 0.01);
  const at::Tensor expected = at::tensor({0.7863513967138546, -1.7665402604890326, 0.29625696281545705}, at::kDouble);
  EXPECT_LT(test::max_abs_error(expected, parameter), 1e-13);
}

// Each step is far below what a bfloat16 near 1 resolves (2^-8); together they are not.
TEST(AdamW, SmallStepsOfShortNumbersAddUp) {
  const at::Tensor parameter = at::ones({3}, at::kBFloat16);
  AdamW optimizer({parameter}, {});
  for (int step = 0; step < 100; ++step) optimizer.step({at::ones({3}, at::kBFloat16)}, 1e-3);
  EXPECT_EQ(parameter.scalar_type(), at::kBFloat16);
  EXPECT_LT(test::max_abs_error(at::full({3}, 0.9), parameter), 4e-3);
}

TEST(AdamW, WithoutDecayAndGradientNothingMoves) {
  const at::Tensor parameter = at::tensor({1.0f, -2.0f});
  AdamW optimizer({parameter}, {});
  optimizer.step({at::zeros({2})}, 0.1);
  EXPECT_TRUE(parameter.equal(at::tensor({1.0f, -2.0f})));
}

TEST(AdamW, WantsOneGradientPerParameter) {
  AdamW optimizer({at::ones({2}), at::ones({3})}, {});
  EXPECT_THROW(optimizer.step({at::ones({2})}, 0.1), c10::Error);
}

}  // namespace
}  // namespace flashmorph
