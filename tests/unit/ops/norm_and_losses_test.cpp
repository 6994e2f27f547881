#include <ATen/ATen.h>
#include <cmath>
#include <gtest/gtest.h>

#include "core/ops/norm.h"
#include "core/ops/vocabulary_loss.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor leaf(at::IntArrayRef shape, at::ScalarType type = at::kDouble) {
  return at::randn(shape, at::TensorOptions(type)).set_requires_grad(true);
}

TEST(RmsNorm, IsItsDefinitionForwardAndBackward) {
  at::manual_seed(1);
  for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-12), {at::kFloat, 2e-6}}) {
    const at::Tensor x = leaf({3, 5, 37}, type), w = leaf({37}, type);
    const at::Tensor exact_x = x.detach().to(at::kDouble).set_requires_grad(true);
    const at::Tensor exact_w = w.detach().to(at::kDouble).set_requires_grad(true);
    const at::Tensor expected = exact_x * (exact_x.square().mean(-1, true) + 1e-6).rsqrt() * exact_w;
    const at::Tensor actual = rms_norm(x, w, 1e-6);
    EXPECT_LT(relative_error(expected, actual), tolerance);
    const at::Tensor upstream = at::randn_like(expected);
    expected.backward(upstream);
    actual.backward(upstream.to(type));
    EXPECT_LT(relative_error(exact_x.grad(), x.grad()), tolerance);
    EXPECT_LT(relative_error(exact_w.grad(), w.grad()), tolerance);
  }
}

TEST(RmsNorm, AFrozenWeightGetsNoGradient) {
  const at::Tensor x = leaf({2, 8}), w = at::ones({8}, at::kDouble);
  rms_norm(x, w, 1e-6).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(w.grad().defined());
}

TEST(Rotate, TurnsPairsByTheirAngle) {
  const at::Tensor x = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble).view({1, 1, 1, 4});
  const at::Tensor angle = at::tensor({0.3, 0.7, 0.3, 0.7}, at::kDouble).view({1, 4});
  const at::Tensor y = rotate(x, angle.cos(), angle.sin()).flatten();
  EXPECT_NEAR(y[0].item<double>(), std::cos(0.3) * 1 - std::sin(0.3) * 3, 1e-12);
  EXPECT_NEAR(y[3].item<double>(), std::cos(0.7) * 4 + std::sin(0.7) * 2, 1e-12);
}

TEST(VocabularyLoss, CrossEntropyIsTheLogSoftmaxInAnyChunk) {
  at::manual_seed(2);
  const at::Tensor hidden = leaf({13, 6}), head = leaf({29, 6});
  at::Tensor targets = at::randint(29, {13}, at::kLong);
  targets[4] = -100;
  const at::Tensor expected = at::cross_entropy_loss(at::mm(hidden, head.t()), targets, {}, /*reduction=*/2);
  expected.backward();
  const at::Tensor d_hidden = hidden.grad().clone(), d_head = head.grad().clone();
  for (const int64_t chunk : {1, 5, 64}) {
    hidden.mutable_grad().reset();
    head.mutable_grad().reset();
    Shard whole;
    const at::Tensor actual = cross_entropy(hidden, head, targets, whole, chunk);
    (actual * 2.0).backward();
    EXPECT_LT(relative_error(expected, actual), 1e-12);
    EXPECT_LT(relative_error(2.0 * d_hidden, hidden.grad()), 1e-12);
    EXPECT_LT(relative_error(2.0 * d_head, head.grad()), 1e-12);
  }
}

TEST(VocabularyLoss, KlDivergenceIsItsDefinition) {
  at::manual_seed(3);
  const at::Tensor hidden = leaf({13, 6}), head = leaf({29, 6});
  const at::Tensor teacher_hidden = at::randn({13, 5}, at::kDouble), teacher_head = at::randn({29, 5}, at::kDouble);
  const at::Tensor p = at::log_softmax(at::mm(teacher_hidden, teacher_head.t()), 1);
  const at::Tensor expected = (p.exp() * (p - at::log_softmax(at::mm(hidden, head.t()), 1))).sum();
  expected.backward();
  const at::Tensor d_hidden = hidden.grad().clone(), d_head = head.grad().clone();
  hidden.mutable_grad().reset();
  head.mutable_grad().reset();
  Shard whole;
  const at::Tensor actual = kl_divergence(hidden, head, teacher_hidden, teacher_head, whole, 4);
  actual.backward();
  EXPECT_LT(relative_error(expected, actual), 1e-12);
  EXPECT_LT(relative_error(d_hidden, hidden.grad()), 1e-12);
  EXPECT_LT(relative_error(d_head, head.grad()), 1e-12);
}

TEST(VocabularyLoss, GreedyTakesTheSmallestIdAmongEquals) {
  Shard whole;
  const at::Tensor head = at::tensor({0.0, 2.0, 1.0, 2.0}, at::kDouble).view({4, 1});
  EXPECT_EQ(greedy_tokens(at::ones({1, 1}, at::kDouble), head, whole).item<int64_t>(), 1);
  EXPECT_EQ(greedy_tokens(-at::ones({1, 1}, at::kDouble), head, whole).item<int64_t>(), 0);
}

}  // namespace
}  // namespace flashmorph
