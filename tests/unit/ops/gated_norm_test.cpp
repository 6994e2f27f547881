#include "core/ops/gated_norm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/ops/rows_read.h"
#include "core/ops/squared_distance.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor seeded(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kDouble);
}

class GatedNorm : public testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(GatedNorm, IsItsDefinitionForwardAndBackward) {
  const auto [swish, shared] = GetParam();
  const auto leaves = [&] {
    return std::vector<at::Tensor>{seeded({2, 5, 3, 8}, 1).set_requires_grad(true),
                                   seeded({shared ? 8 : 24}, 2).set_requires_grad(true),
                                   seeded({2, 5, 24}, 3).set_requires_grad(true)};
  };
  const auto fast = leaves(), plain = leaves();
  const at::Tensor upstream = seeded({2, 5, 24}, 4);
  const at::Tensor actual = gated_rms_norm(fast[0], fast[1], fast[2], 1e-6, swish);
  const at::Tensor hat = plain[0] / (plain[0].square().mean(-1, true) + 1e-6).sqrt();
  const at::Tensor gate = swish ? plain[2] * at::sigmoid(plain[2]) : at::sigmoid(plain[2]);
  const at::Tensor expected = (hat * plain[1].view({-1, 8})).flatten(2, 3) * gate;
  actual.backward(upstream);
  expected.backward(upstream);
  EXPECT_LT(relative_error(expected, actual), 1e-12);
  for (size_t i = 0; i < fast.size(); ++i)
    EXPECT_LT(relative_error(plain[i].grad(), fast[i].grad()), 1e-12) << "input " << i;
}

TEST_P(GatedNorm, IsCloseInBFloat16) {
  const auto [swish, shared] = GetParam();
  std::vector<at::Tensor> half, full;
  for (const at::Tensor& x : {seeded({2, 5, 3, 8}, 1), seeded({shared ? 8 : 24}, 2), seeded({2, 5, 24}, 3)}) {
    half.push_back(x.to(at::kBFloat16).set_requires_grad(true));
    full.push_back(half.back().detach().to(at::kFloat).set_requires_grad(true));
  }
  const at::Tensor upstream = seeded({2, 5, 24}, 4).to(at::kBFloat16);
  const at::Tensor y = gated_rms_norm(half[0], half[1], half[2], 1e-6, swish),
                   expected = gated_rms_norm(full[0], full[1], full[2], 1e-6, swish);
  y.backward(upstream);
  expected.backward(upstream.to(at::kFloat));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LT(relative_error(expected, y), 4e-3);
  for (size_t i = 0; i < half.size(); ++i)
    EXPECT_LT(relative_error(full[i].grad(), half[i].grad()), 4e-3) << "input " << i;
}

INSTANTIATE_TEST_SUITE_P(GatesAndWeights, GatedNorm, testing::Combine(testing::Bool(), testing::Bool()));

TEST(GatedNormShapes, AreChecked) {
  const at::Tensor x = seeded({1, 2, 3, 4}, 1), weight = seeded({12}, 2), gate = seeded({1, 2, 12}, 3);
  EXPECT_ANY_THROW(gated_rms_norm(x, weight.narrow(0, 0, 8), gate, 1e-6, false));
  EXPECT_ANY_THROW(gated_rms_norm(x, weight, gate.narrow(1, 0, 1), 1e-6, false));
  EXPECT_ANY_THROW(gated_rms_norm(x, weight.to(at::kFloat), gate, 1e-6, false));
}

TEST(SquaredDistance, AddsUpInDoubleAndKnowsItsGradient) {
  at::Tensor a = seeded({7, 9}, 1).set_requires_grad(true);
  const at::Tensor b = seeded({7, 9}, 2).set_requires_grad(true);
  const at::Tensor sum = squared_distance(a, b);
  (3.0 * sum).backward();
  EXPECT_EQ(sum.scalar_type(), at::kDouble);
  EXPECT_LT(relative_error((a - b).square().sum(), sum), 1e-14);
  EXPECT_LT(relative_error(6.0 * (a - b), a.grad()), 1e-14);
  EXPECT_FALSE(b.grad().defined());
  const at::Tensor wide = at::full({1}, 1.0, at::kBFloat16), close = at::full({1}, 1.0078125, at::kBFloat16);
  EXPECT_EQ(squared_distance(wide, close).item<double>(), 0.0078125 * 0.0078125) << "differences are not rounded";
  EXPECT_ANY_THROW(squared_distance(a, b.narrow(0, 0, 3)));
}

TEST(ReadRows, AddsTheRowsPullToTheGradientThatPassesBy) {
  const at::Tensor x = seeded({2, 5, 3}, 1).set_requires_grad(true);
  const at::Tensor G = seeded({2, 5, 3}, 3), R = seeded({3, 3}, 4), index = at::tensor({0, 4, 7}, at::kLong);
  const at::Tensor y = x * 2.0;
  const auto [h, rows] = read_rows(y, index);
  EXPECT_TRUE(rows.equal(y.flatten(0, 1).index_select(0, index)) && h.equal(y));
  const void *came = nullptr, *left = nullptr;
  h.register_hook([&](const at::Tensor& gradient) { came = gradient.const_data_ptr(); });
  y.register_hook([&](const at::Tensor& gradient) { left = gradient.const_data_ptr(); });
  ((h * G).sum() + (rows * R).sum()).backward();
  const at::Tensor expected = 2.0 * G.view({10, 3}).index_add(0, index, R).view(G.sizes());
  EXPECT_TRUE(x.grad().equal(expected));
  EXPECT_EQ(came, left) << "a gradient that nobody else holds is added to in place";

  // What others hold stays as it is; without a gradient of the others there are the rows alone.
  const at::Tensor again = x.detach().set_requires_grad(true), more = x.detach().set_requires_grad(true);
  const auto shared = read_rows(again * 2.0, index);
  at::Tensor held;
  shared.x.register_hook([&](const at::Tensor& gradient) { held = gradient; });
  ((shared.x * G).sum() + (shared.rows * R).sum()).backward();
  EXPECT_TRUE(again.grad().equal(expected) && held.equal(G));
  (read_rows(more, index).rows * R).sum().backward();
  EXPECT_TRUE(more.grad().equal(at::zeros({10, 3}, at::kDouble).index_add(0, index, R).view(G.sizes())));
  EXPECT_FALSE(read_rows(x.detach(), index).rows.requires_grad());
}

}  // namespace
}  // namespace flashmorph
