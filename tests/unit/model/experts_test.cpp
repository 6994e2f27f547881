// The grouped mixture against its definition, token by token, in float64: values and every gradient.
#include "core/model/experts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::max_abs_error;

constexpr int64_t kHidden = 12, kIntermediate = 10;

ExpertWeights random_experts(int64_t count) {
  at::Generator generator = at::detail::createCPUGenerator(3);
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return (at::randn({rows, columns}, generator, at::kDouble) / std::sqrt(static_cast<double>(columns)))
        .set_requires_grad(true);
  };
  ExpertWeights weights{.router = matrix(count, kHidden), .experts = {}};
  for (int64_t e = 0; e < count; ++e)
    weights.experts.push_back(
        {matrix(kIntermediate, kHidden), matrix(kIntermediate, kHidden), matrix(kHidden, kIntermediate)});
  return weights;
}

std::vector<at::Tensor> tensors_of(const ExpertWeights& weights, const at::Tensor& x) {
  std::vector<at::Tensor> all = {x, weights.router};
  for (const MlpWeights& expert : weights.experts) all.insert(all.end(), {expert.gate, expert.up, expert.down});
  return all;
}

// One token at a time, straight from the formula.
at::Tensor token_by_token(const at::Tensor& x_BTD, const ExpertWeights& weights, const ExpertsSpec& spec) {
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& x : x_BTD.flatten(0, 1).unbind(0)) {
    const at::Tensor p = at::softmax(at::mv(weights.router, x), 0);
    const at::Tensor chosen = std::get<1>(p.sort(0, /*descending=*/true)).narrow(0, 0, spec.per_token);
    const at::Tensor total = spec.normalized ? p.index_select(0, chosen).sum() : at::ones({}, at::kDouble);
    at::Tensor y = at::zeros_like(x);
    for (int64_t i = 0; i < spec.per_token; ++i) {
      const MlpWeights& expert = weights.experts[static_cast<size_t>(chosen[i].item<int64_t>())];
      y = y + p[chosen[i].item<int64_t>()] / total *
                  at::mv(expert.down, at::silu(at::mv(expert.gate, x)) * at::mv(expert.up, x));
    }
    outputs.push_back(y);
  }
  return at::stack(outputs).view(x_BTD.sizes());
}

struct Case {
  int64_t count, per_token, tokens;
  bool normalized;
};

class Experts : public testing::TestWithParam<Case> {};

TEST_P(Experts, MatchTheDefinitionForwardAndBackward) {
  const auto [count, per_token, tokens, normalized] = GetParam();
  const ExpertsSpec spec{
      .count = count, .per_token = per_token, .intermediate = kIntermediate, .normalized = normalized};
  const ExpertWeights weights = random_experts(count);
  const at::Tensor x =
      at::randn({2, tokens, kHidden}, at::detail::createCPUGenerator(7), at::kDouble).set_requires_grad(true);
  const at::Tensor upstream = at::randn({2, tokens, kHidden}, at::detail::createCPUGenerator(8), at::kDouble);
  const at::Tensor actual = mixture_of_experts(x, weights, spec), expected = token_by_token(x, weights, spec);
  EXPECT_LT(max_abs_error(expected, actual), 1e-12);

  const auto gradients = [&](const at::Tensor& y) {
    return torch::autograd::grad({y}, tensors_of(weights, x), {upstream}, /*retain_graph=*/std::nullopt,
                                 /*create_graph=*/false, /*allow_unused=*/true);
  };
  const auto exact = gradients(expected), fast = gradients(actual);
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_EQ(exact[i].defined(), fast[i].defined()) << "gradient " << i;
    if (!exact[i].defined()) continue;
    EXPECT_LT(max_abs_error(exact[i], fast[i]), 1e-11) << "gradient " << i;
  }
  // With one expert a token and weights that add up to 1, the router decides but gets no gradient.
  const bool learns = per_token > 1 || !normalized;
  EXPECT_EQ(fast[1].abs().max().item<double>() > 1e-6, learns);
}

INSTANTIATE_TEST_SUITE_P(Model, Experts,
                         testing::Values(Case{8, 3, 13, true}, Case{8, 3, 13, false}, Case{5, 1, 9, true},
                                         Case{5, 1, 9, false}, Case{4, 4, 6, true}, Case{32, 2, 1, true}));

}  // namespace
}  // namespace flashmorph
