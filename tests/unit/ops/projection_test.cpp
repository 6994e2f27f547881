#include "core/ops/projection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed, at::ScalarType type = at::kFloat) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble).to(type);
}

// Rows on both sides of where the products change hands, dense and strided, with and without a bias.
TEST(Project, IsTheDefinitionInFloat64) {
  for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-14), {at::kFloat, 1e-6}, {at::kBFloat16, 1e-2}})
    for (const int64_t tokens : {1, 15, 16, 17, 100})
      for (const bool strided : {false, true}) {
        const at::Tensor x =
            (strided ? seeded({37, 2, tokens}, 1, type).permute({1, 2, 0}) : seeded({2, tokens, 37}, 1, type))
                .requires_grad_(true);
        const at::Tensor w = (strided ? seeded({37, 48}, 2, type).t() : seeded({48, 37}, 2, type)).requires_grad_(true);
        const at::Tensor b = strided ? at::Tensor() : seeded({48}, 3, type).requires_grad_(true);
        const at::Tensor upstream = seeded({48, 2, tokens}, 4, type).permute({1, 2, 0});
        const at::Tensor y = project(x, w, b);
        y.backward(upstream);

        const auto exact = [](const at::Tensor& t) { return t.detach().to(at::kDouble); };
        const at::Tensor dy = exact(upstream).flatten(0, 1), rows = exact(x).flatten(0, 1);
        const at::Tensor expected = at::matmul(exact(x), exact(w).t());
        EXPECT_LT(relative_error(b.defined() ? expected + exact(b) : expected, y), tolerance) << type << " " << tokens;
        EXPECT_LT(relative_error(at::mm(dy, exact(w)).view_as(x), x.grad()), tolerance) << type << " " << tokens;
        EXPECT_LT(relative_error(at::mm(dy.t(), rows), w.grad()), tolerance) << type << " " << tokens;
        if (b.defined()) {
          EXPECT_LT(relative_error(dy.sum(0), b.grad()), tolerance) << type << " " << tokens;
        }
      }
}

TEST(Project, WhatIsFrozenGetsNoGradient) {
  const at::Tensor x = seeded({40, 8}, 1), frozen = seeded({4, 8}, 2), trained = seeded({4, 8}, 3).requires_grad_(true);
  EXPECT_FALSE(project(x, frozen).requires_grad());
  project(x, trained).sum().backward();
  EXPECT_TRUE(trained.grad().defined());
  EXPECT_FALSE(x.grad().defined());
}

TEST(Project, RefusesWhatDoesNotFit) {
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 6}, 2)), c10::Error);
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 5}, 2), seeded({5}, 3)), c10::Error);
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 5}, 2, at::kDouble)), c10::Error);
}

}  // namespace
}  // namespace flashmorph
