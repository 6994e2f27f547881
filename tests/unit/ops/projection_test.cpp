#include "core/ops/projection.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <future>
#include <limits>

#include "core/ops/put_off_gradients.h"
#include "core/ops/quantised.h"
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

TEST(ProjectEach, IsEachOfThemAndTheirGradientsAddUp) {
  for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-14), {at::kFloat, 1e-6}, {at::kBFloat16, 1e-2}})
    for (const bool biased : {false, true})
      for (const int64_t tokens : {3, 40}) {
        const at::Tensor x = seeded({2, tokens, 37}, 1, type).requires_grad_(true);
        std::vector<at::Tensor> weights, biases, leaves = {x};
        for (const int64_t rows : {48, 16, 24}) weights.push_back(seeded({rows, 37}, rows, type).requires_grad_(true));
        for (const int64_t rows : {48, 16, 24})
          biases.push_back(biased ? seeded({rows}, rows + 1, type).requires_grad_(true) : at::Tensor());
        const std::vector<at::Tensor> y = project_each(x, weights, biases);

        at::Tensor dx = at::zeros({2 * tokens, 37}, at::kDouble), sum = at::zeros({}, type);
        const auto exact = [](const at::Tensor& t) { return t.detach().to(at::kDouble); };
        std::vector<at::Tensor> upstream;
        for (size_t i = 0; i < 3; ++i) {
          upstream.push_back(seeded(y[i].sizes(), 70 + i, type));
          sum = sum + (y[i] * upstream[i]).sum();
          const at::Tensor expected = at::matmul(exact(x), exact(weights[i]).t());
          EXPECT_LT(relative_error(biased ? expected + exact(biases[i]) : expected, y[i]), tolerance) << type;
          dx += at::mm(exact(upstream[i]).flatten(0, 1), exact(weights[i]));
        }
        sum.backward();
        EXPECT_LT(relative_error(dx.view_as(x), x.grad()), tolerance) << type << " " << tokens;
        for (size_t i = 0; i < 3; ++i) {
          const at::Tensor dy = exact(upstream[i]).flatten(0, 1);
          EXPECT_LT(relative_error(at::mm(dy.t(), exact(x).flatten(0, 1)), weights[i].grad()), tolerance) << type;
          if (biased) {
            EXPECT_LT(relative_error(dy.sum(0), biases[i].grad()), tolerance) << type;
          }
        }
      }
}

TEST(ProjectEach, GradientsThatLieSideBySideGoThroughOneProduct) {
  const at::Tensor x = seeded({2, 5, 8}, 1, at::kDouble).set_requires_grad(true);
  const std::vector<at::Tensor> weights = {seeded({3, 8}, 2, at::kDouble).set_requires_grad(true),
                                           seeded({6, 8}, 3, at::kDouble)};
  const at::Tensor both = seeded({2, 5, 9}, 4, at::kDouble);
  const std::vector<at::Tensor> beside = both.split_with_sizes({3, 6}, -1);
  std::vector<std::vector<at::Tensor>> found;
  for (const bool apart : {false, true}) {
    const std::vector<at::Tensor> y = project_each(x, weights);
    found.push_back(
        torch::autograd::grad({y[0], y[1]}, {x, weights[0]}, {apart ? beside[0].contiguous() : beside[0], beside[1]}));
  }
  for (size_t i = 0; i < 2; ++i) EXPECT_LT(relative_error(found[1][i], found[0][i]), 1e-14) << i;
  EXPECT_LT(relative_error(both.matmul(at::cat(weights).detach()), found[0][0]), 1e-14);
}

TEST(ProjectEach, WhatNobodyAsksForIsNotWorkedOut) {
  const at::Tensor x = seeded({2, 20, 8}, 1).requires_grad_(true), frozen = seeded({4, 8}, 2),
                   other = seeded({6, 8}, 3);
  const std::vector<at::Tensor> y = project_each(x, {frozen, other});
  y[1].sum().backward();  // the first has no gradient
  EXPECT_LT(relative_error(at::mm(at::ones({40, 6}), other).view_as(x), x.grad()), 1e-6);
  EXPECT_FALSE(frozen.grad().defined());
  EXPECT_FALSE(project_each(x.detach(), {frozen, other})[0].requires_grad());
  EXPECT_THROW(project_each(x, {frozen, other}, {at::Tensor(), seeded({6}, 4)}), c10::Error);
  EXPECT_THROW(project_each(x, {frozen, seeded({6, 9}, 3)}), c10::Error);
}

// One node for the first ones, as their biases or float8 forms want it, and one for each of the others.
TEST(ProjectEach, JoinsTheFirstOnesThatHaveBiasesOrWereQuantisedTogether) {
  const at::Tensor b = seeded({32}, 4), c = seeded({16}, 5), upstream = seeded({3, 80}, 6);
  for (const bool quantised : {false, true})
    for (const bool biased : {false, true}) {
      std::vector<at::Tensor> weights;
      for (const int64_t rows : {32, 16, 8, 24}) weights.push_back(seeded({rows, 48}, rows));
      const at::TensorList first(weights.data(), 2);
      if (quantised)
        first[0].unsafeGetTensorImpl()->set_backend_meta(
            c10::make_intrusive<QuantisedMatrices>(first, /*going_back=*/true));
      const std::vector<at::Tensor> biases = biased ? std::vector{b, c} : std::vector<at::Tensor>();
      const at::Tensor x = seeded({3, 48}, 1).requires_grad_(true);

      const std::vector<at::Tensor> y = project_each(x, weights, biases);
      std::vector<at::Tensor> apart = project_each(x, first, biases);
      for (const at::Tensor& other : at::TensorList(weights).slice(2)) apart.push_back(project(x, other));

      ASSERT_EQ(y.size(), weights.size());
      for (size_t i = 0; i < y.size(); ++i) EXPECT_TRUE(y[i].equal(apart[i])) << i << quantised << biased;
      EXPECT_EQ(y[0].grad_fn(), y[1].grad_fn());
      EXPECT_EQ(y[2].grad_fn() == y[0].grad_fn(), !quantised && !biased);
      const auto pulled = [&](const std::vector<at::Tensor>& outputs) {
        return torch::autograd::grad({at::cat(outputs, 1)}, {x}, {upstream})[0];
      };
      EXPECT_LT(relative_error(pulled(apart).to(at::kDouble), pulled(y)), 1e-6);
      EXPECT_THROW(project_each(x, weights, {b, c, seeded({8}, 7), seeded({24}, 8), b}), c10::Error);
    }
}

// The gradients that are put off are the same bits, those that other leaves or x get do not wait.
TEST(PutOffGradients, OfTrainedLeavesComeLaterAndAreTheSame) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const at::Tensor x = seeded({2, 20, 8}, 1, type).requires_grad_(true);
    const at::Tensor w = seeded({6, 8}, 2, type).requires_grad_(true), v = seeded({8, 6}, 3, type).requires_grad_(true),
                     b = seeded({6}, 4, type).requires_grad_(true), made_from = seeded({8, 6}, 5, type);
    const at::Tensor made = made_from.requires_grad_(true) * 2;
    const std::vector<at::Tensor> leaves = {w, v, b, made_from, x};
    const auto run = [&] {
      const at::Tensor h = project_each(x, {w}, {b})[0];
      return (project(h, v).sin() + project(h, made)).sum();
    };
    std::vector<at::Tensor> expected;
    for (int pass = 0; pass < 2; ++pass) run().backward();  // gradients add up
    for (const at::Tensor& leaf : leaves) expected.push_back(std::exchange(leaf.mutable_grad(), {}));

    for (int pass = 0; pass < 2; ++pass) {
      PutOffGradients list;
      at::Tensor loss;
      {
        const PutOffGradients::Scope putting_off(&list);
        loss = run();
      }
      std::async(std::launch::async, [&] { loss.backward(); }).get();  // as on a card
      EXPECT_EQ(w.grad().defined(), pass > 0);
      EXPECT_EQ(v.grad().defined(), pass > 0);
      EXPECT_TRUE(b.grad().defined() && made_from.grad().defined() && x.grad().defined());
      list.work_out();
      list.work_out();  // once
    }
    for (size_t i = 0; i < leaves.size(); ++i)
      EXPECT_TRUE(at::equal(leaves[i].grad(), expected[i])) << type << " " << i;
  }
  EXPECT_EQ(PutOffGradients::collecting(), nullptr);
}

TEST(Project, RefusesWhatDoesNotFit) {
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 6}, 2)), c10::Error);
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 5}, 2), seeded({5}, 3)), c10::Error);
  EXPECT_THROW(project(seeded({3, 5}, 1), seeded({4, 5}, 2, at::kDouble)), c10::Error);
}

// float8 by hand: of a row, in float64, each number at most 448 and rounded to a multiple of its own binade's step.
at::Tensor rounded_rows(const at::Tensor& x_ND) {
  const at::Tensor x = x_ND.to(at::kDouble), scale = x.abs().amax(1, true) / 448.0, y = x / scale;
  const at::Tensor step = (y.abs().clamp_min(std::ldexp(1.0, -6)).log2().floor() - 3).exp2();
  return (y / step).round() * step * scale;
}

// A shared x and several outputs, rows of very different sizes, one matrix that is a slice of a wider one.
TEST(QuantisedMatrices, AreTheDefinitionInFloat64ForwardAndBack) {
  for (const auto& [type, tolerance] : {std::pair(at::kFloat, 1e-6), {at::kBFloat16, 4e-3}}) {
    const at::Tensor row_sizes = at::logspace(-6, 3, 80, 10.0, at::kDouble).view({2, 40, 1});
    const at::Tensor x =
        (seeded({2, 40, 96}, 1, at::kDouble) * row_sizes).to(type).slice(2, 0, 64).requires_grad_(true);
    std::vector<at::Tensor> weights, biases, upstream;
    for (const int64_t rows : {48, 16}) {
      weights.push_back(seeded({rows, 64}, rows, type));
      biases.push_back(seeded({rows}, rows + 1, type));
      upstream.push_back(seeded({2, 40, rows}, rows + 2, type));
    }
    ASSERT_TRUE(QuantisedMatrices::fit(weights));
    weights[0].unsafeGetTensorImpl()->set_backend_meta(
        c10::make_intrusive<QuantisedMatrices>(weights, /*going_back=*/true));
    const std::vector<at::Tensor> y = project_each(x, weights, biases);
    (y[0] * upstream[0]).sum().backward(at::Tensor(), /*retain_graph=*/true);
    const at::Tensor of_first = x.grad().clone();
    x.mutable_grad().zero_();
    ((y[0] * upstream[0]).sum() + (y[1] * upstream[1]).sum()).backward();

    using AtOnce = std::vector<at::Tensor>(const at::Tensor&, at::TensorList);
    static const auto at_once =
        c10::Dispatcher::singleton().findSchemaOrThrow("flashmorph::project_in_float8", "").typed<AtOnce>();
    EXPECT_TRUE((at_once.call(x, weights)[1] + biases[1]).equal(y[1])) << "as Python calls it";

    const at::Tensor rows = rounded_rows(x.detach().flatten(0, 1));
    for (size_t i = 0; i < 2; ++i) {
      const at::Tensor product = at::mm(rows, rounded_rows(weights[i]).t()) + biases[i].to(at::kDouble);
      const at::Tensor error = (y[i].detach().flatten(0, 1).to(at::kDouble) - product).norm(2, 1) / product.norm(2, 1);
      EXPECT_LT(error.max().item<double>(), 2 * tolerance) << type << " output " << i;
    }
    const at::Tensor both = rounded_rows(at::cat(weights).t()), joined = at::cat(upstream, -1).flatten(0, 1);
    EXPECT_LT(relative_error(at::mm(rounded_rows(joined), both.t()).view_as(x), x.grad()), tolerance) << type;
    const at::Tensor alone = at::cat({upstream[0], at::zeros_like(upstream[1])}, -1).flatten(0, 1);
    EXPECT_LT(relative_error(at::mm(rounded_rows(alone), both.t()).view_as(x), of_first), tolerance) << type;
  }
}

TEST(QuantisedMatrices, ARowOfZerosIsZeroAndOneThatIsNotFiniteSaysSo) {
  at::Tensor x = seeded({4, 16}, 1);
  x[0].zero_();
  x[1].mul_(1e-30);
  x[2][3] = std::numeric_limits<float>::infinity();
  x[3][5] = std::numeric_limits<float>::quiet_NaN();
  const QuantisedRows rows = quantise_rows(x);
  const at::Tensor back = rows.value_ND.to(at::kFloat) * rows.scale_N1;
  EXPECT_TRUE(back[0].eq(0).all().item<bool>());
  EXPECT_LT(relative_error(x[1].to(at::kDouble), back[1]), 0.04);
  EXPECT_TRUE(back[2].isnan().any().item<bool>());
  EXPECT_TRUE(back[3].isnan().any().item<bool>());
}

// Nothing is multiplied by that is no longer the weight, or by another product's.
TEST(QuantisedMatrices, RefuseWeightsThatChangedAreTrainedOrStandAlone) {
  const at::Tensor x = seeded({8, 32}, 1), a = seeded({16, 32}, 2), b = seeded({32, 32}, 3);
  const auto attach = [&] {
    a.unsafeGetTensorImpl()->set_backend_meta(
        c10::make_intrusive<QuantisedMatrices>(at::TensorList({a, b}), /*going_back=*/false));
  };
  attach();
  EXPECT_NO_THROW(project_each(x, {a, b}));
  EXPECT_THROW(project(x, a), c10::Error);
  EXPECT_THROW(project_each(x, {a, a}), c10::Error);
  EXPECT_THROW(project_each(x.clone().requires_grad_(true), {a, b}), c10::Error);
  const at::Tensor fixed = seeded({16}, 4), trained = seeded({32}, 5).requires_grad_(true);
  EXPECT_THROW(project_each(x, {a, b}, {fixed, trained}), c10::Error);
  b.mul_(2.0);
  EXPECT_THROW(project_each(x, {a, b}), c10::Error);
  attach();
  b.requires_grad_(true);
  EXPECT_THROW(project_each(x, {a, b}), c10::Error);
  const at::Tensor copy = a.detach().clone();
  EXPECT_LT(relative_error(at::mm(x, copy.t()).to(at::kDouble), project(x, copy)), 1e-6);  // what is trained apart
  EXPECT_FALSE(QuantisedMatrices::fit(seeded({8, 32}, 1)));
  EXPECT_FALSE(QuantisedMatrices::fit(seeded({32, 24}, 1)));
  EXPECT_THROW(quantise_rows(seeded({2, 32}, 1, at::kDouble)), c10::Error);
  EXPECT_THROW(quantise_rows(seeded({2, 24}, 1)), c10::Error);
}

}  // namespace
}  // namespace flashmorph
