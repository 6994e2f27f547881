#include "core/ops/short_convolution.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/ops/norm.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

// By ATen's own grouped convolution over a padded sequence, x [B, T, C].
at::Tensor definition(const at::Tensor& x, const at::Tensor& weight, bool silu) {
  const at::Tensor padded = at::constant_pad_nd(x.transpose(1, 2), {weight.size(1) - 1, 0});
  const at::Tensor y =
      at::convolution(padded, weight.unsqueeze(1), {}, {1}, {0}, {1}, false, {0}, weight.size(0)).transpose(1, 2);
  return silu ? y / (1 + (-y).exp()) : y;
}

class ShortConvolution : public testing::TestWithParam<bool> {};

TEST_P(ShortConvolution, IsTheDefinitionForwardAndBackward) {
  for (const int64_t tokens : {1, 2, 3, 4, 17}) {
    const at::Tensor x = seeded({2, tokens, 5}, 1).set_requires_grad(true),
                     x_exact = x.detach().clone().set_requires_grad(true);
    const at::Tensor w = seeded({5, 4}, 2).set_requires_grad(true),
                     w_exact = w.detach().clone().set_requires_grad(true);
    const at::Tensor actual = short_convolution(x, w, std::nullopt, std::nullopt, GetParam()),
                     expected = definition(x_exact, w_exact, GetParam());
    EXPECT_LT(relative_error(expected, actual), 1e-14) << tokens;
    actual.square().sum().backward();
    expected.square().sum().backward();
    EXPECT_LT(relative_error(x_exact.grad(), x.grad()), 1e-13) << tokens;
    EXPECT_LT(relative_error(w_exact.grad(), w.grad()), 1e-13) << tokens;
  }
}

TEST_P(ShortConvolution, ContinuesThePast) {
  const at::Tensor x = seeded({2, 9, 5}, 1), w = seeded({5, 4}, 2);
  const at::Tensor whole = short_convolution(x, w, std::nullopt, std::nullopt, GetParam());
  for (const int64_t past : {1, 2, 3, 5}) {
    const at::Tensor rest = short_convolution(x.slice(1, past), w, x.slice(1, std::max<int64_t>(past - 3, 0), past),
                                              std::nullopt, GetParam());
    EXPECT_LT(relative_error(whole.slice(1, past), rest), 1e-14) << past;
  }
}

TEST_P(ShortConvolution, DocumentsAreConvolvedApart) {
  const std::vector<int64_t> offsets = {0, 1, 3, 10}, places = {0, 0, 1, 0, 1, 2, 3, 4, 5, 6};
  const at::Tensor x = seeded({1, 10, 5}, 1).set_requires_grad(true), w = seeded({5, 4}, 2).set_requires_grad(true);
  std::vector<at::Tensor> parts;
  for (size_t d = 0; d < 3; ++d)
    parts.push_back(
        short_convolution(x.slice(1, offsets[d], offsets[d + 1]), w, std::nullopt, std::nullopt, GetParam()));
  const at::Tensor expected = at::cat(parts, 1),
                   actual = short_convolution(x, w, std::nullopt, at::tensor(places), GetParam());
  EXPECT_LT(relative_error(expected, actual), 1e-15);
  const auto gradients = [&](const at::Tensor& y) {
    y.square().sum().backward();
    const std::pair<at::Tensor, at::Tensor> found = {x.grad().clone(), w.grad().clone()};
    x.mutable_grad().reset();
    w.mutable_grad().reset();
    return found;
  };
  const auto [dx, dw] = gradients(expected);
  const auto [dx_packed, dw_packed] = gradients(actual);
  EXPECT_LT(relative_error(dx, dx_packed), 1e-14);
  EXPECT_LT(relative_error(dw, dw_packed), 1e-14);
}

INSTANTIATE_TEST_SUITE_P(Silu, ShortConvolution, testing::Bool());

TEST(ShortConvolutionShapes, AreChecked) {
  const at::Tensor x = seeded({1, 6, 5}, 1), w = seeded({5, 4}, 2);
  EXPECT_THROW(short_convolution(x, seeded({4, 4}, 1), std::nullopt, std::nullopt, false), c10::Error);
  EXPECT_THROW(short_convolution(x, w, seeded({1, 3, 4}, 1), std::nullopt, false), c10::Error);
  EXPECT_THROW(short_convolution(x, w, std::nullopt, at::arange(5), false), c10::Error);
  EXPECT_THROW(short_convolution(x, w, x.narrow(1, 0, 3), at::arange(6), false), c10::Error);
}

TEST(L2Norm, IsTheDefinitionForwardAndBackward) {
  const at::Tensor x = seeded({2, 3, 8}, 1).set_requires_grad(true), exact = x.detach().clone().set_requires_grad(true);
  const at::Tensor actual = l2_norm(x, 1e-2), expected = exact / (exact.square().sum(-1, true) + 1e-2).sqrt();
  EXPECT_LT(relative_error(expected, actual), 1e-14);
  actual.sin().sum().backward();
  expected.sin().sum().backward();
  EXPECT_LT(relative_error(exact.grad(), x.grad()), 1e-13);
}

}  // namespace
}  // namespace flashmorph
