#include "core/ops/lightning_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tensors.h"

// Letters: B batch, T tokens, H heads, K key dim, V value dim.

namespace flashmorph {
namespace {

using test::relative_error;

struct Inputs {
  at::Tensor q, k, v, log_decay, state;

  Inputs to(at::ScalarType type) const {
    const auto leaf = [&](const at::Tensor& x) { return x.detach().to(type).clone().set_requires_grad(true); };
    return {leaf(q), leaf(k), leaf(v), log_decay, leaf(state)};
  }
  std::vector<at::Tensor> gradients() const { return {q.grad(), k.grad(), v.grad(), state.grad()}; }
};

Inputs random_inputs(int64_t T, int64_t K = 8, int64_t V = 4) {
  at::manual_seed(T * 100 + K);
  const auto exact = at::TensorOptions(at::kDouble);
  return Inputs{at::randn({2, T, 3, K}, exact), at::randn({2, T, 3, K}, exact), at::randn({2, T, 3, V}, exact),
                at::tensor({-0.7, -0.05, -0.002}, exact), at::randn({2, 3, K, V}, exact)}
      .to(at::kDouble);
}

// The definition, one token at a time: S = exp(g) S + k v^T; o = scale S^T q.
std::pair<at::Tensor, at::Tensor> definition(const Inputs& in, double scale) {
  at::Tensor state = in.state;
  const at::Tensor decay = in.log_decay.exp().to(in.q.scalar_type()).view({1, -1, 1, 1});
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < in.q.size(1); ++t) {
    state = state * decay + in.k.select(1, t).unsqueeze(-1) * in.v.select(1, t).unsqueeze(-2);
    outputs.push_back(scale * (state * in.q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {at::stack(outputs, 1), state};
}

std::pair<at::Tensor, at::Tensor> run(const Inputs& in, int64_t chunk, double scale = 0.35) {
  return lightning_attention(in.q, in.k, in.v, in.log_decay, in.state, scale, chunk);
}

struct Case {
  int64_t tokens, chunk;
};

class LightningAttention : public testing::TestWithParam<Case> {};

TEST_P(LightningAttention, ChunkedIsTheDefinitionForwardAndBackward) {
  const auto [tokens, chunk] = GetParam();
  for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-10), {at::kFloat, 1e-5}}) {
    const Inputs exact = random_inputs(tokens), fast = exact.to(type);
    const auto [expected, expected_state] = definition(exact, 0.35);
    const auto [actual, actual_state] = run(fast, chunk);
    EXPECT_LT(relative_error(expected, actual), tolerance);
    EXPECT_LT(relative_error(expected_state, actual_state), tolerance);

    const at::Tensor d_output = at::randn_like(expected), d_state = at::randn_like(expected_state);
    ((expected * d_output).sum() + (expected_state * d_state).sum()).backward();
    ((actual * d_output.to(type)).sum() + (actual_state * d_state.to(type)).sum()).backward();
    for (size_t i = 0; i < 4; ++i)
      EXPECT_LT(relative_error(exact.gradients()[i], fast.gradients()[i]), tolerance) << "gradient " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, LightningAttention,
                         testing::Values(Case{1, 16}, Case{3, 1}, Case{15, 16}, Case{16, 16}, Case{17, 16}, Case{39, 16},
                                         Case{39, 2}, Case{131, 64}, Case{257, 128}));

TEST(LightningAttentionProperties, StatePassesFromOnePartToTheNext) {
  const Inputs in = random_inputs(41);
  const auto [whole, whole_state] = run(in, 16);
  const auto part = [&](const at::Tensor& x, int64_t first, int64_t count) { return x.narrow(1, first, count); };
  const auto [a, between] =
      lightning_attention(part(in.q, 0, 13), part(in.k, 0, 13), part(in.v, 0, 13), in.log_decay, in.state, 0.35, 16);
  const auto [b, last] =
      lightning_attention(part(in.q, 13, 28), part(in.k, 13, 28), part(in.v, 13, 28), in.log_decay, between, 0.35, 16);
  EXPECT_LT(relative_error(whole, at::cat({a, b}, 1)), 1e-12);
  EXPECT_LT(relative_error(whole_state, last), 1e-12);

  const at::Tensor upstream = at::randn_like(whole);
  (whole * upstream).sum().backward();
  const at::Tensor expected = in.k.grad().clone();
  in.k.mutable_grad().reset();
  (at::cat({a, b}, 1) * upstream).sum().backward();
  EXPECT_LT(relative_error(expected, in.k.grad()), 1e-12);
}

TEST(LightningAttentionProperties, NothingLooksAhead) {
  const Inputs in = random_inputs(40);
  const auto before = run(in, 16).first.detach().clone();
  Inputs changed = in.to(at::kDouble);
  changed.v.detach().select(1, 20).fill_(100.0);
  const auto after = run(changed, 16).first;
  EXPECT_TRUE(before.narrow(1, 0, 20).equal(after.narrow(1, 0, 20).detach()));
  EXPECT_FALSE(before.narrow(1, 20, 1).equal(after.narrow(1, 20, 1).detach()));
}

TEST(LightningAttentionProperties, StrongAndNoDecay) {
  Inputs in = random_inputs(35);
  in.log_decay = at::tensor({-50.0, -1e4, 0.0}, at::kDouble);
  const auto [output, state] = run(in, 16);
  const auto [expected, expected_state] = definition(in, 0.35);
  EXPECT_LT(relative_error(expected, output), 1e-10);
  output.sum().backward();
  for (const at::Tensor& gradient : in.gradients()) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(LightningAttentionProperties, CentralDifferences) {
  const Inputs in = random_inputs(11, 4, 3);
  const auto loss = [&](const Inputs& at_point) {
    const auto [output, state] = run(at_point, 4);
    return output.square().sum() + state.sin().sum();
  };
  loss(in).backward();
  constexpr double kStep = 1e-5;
  const std::vector<at::Tensor> gradients = in.gradients();
  const std::vector<at::Tensor> leaves = {in.q, in.k, in.v, in.state};
  for (size_t i = 0; i < leaves.size(); ++i) {
    at::Tensor flat = leaves[i].detach().view(-1);
    for (const int64_t place : {int64_t{0}, flat.numel() / 2, flat.numel() - 1}) {
      const double here = flat[place].item<double>();
      flat[place] = here + kStep;
      const double above = loss(in).item<double>();
      flat[place] = here - kStep;
      const double below = loss(in).item<double>();
      flat[place] = here;
      EXPECT_NEAR(gradients[i].flatten()[place].item<double>(), (above - below) / (2 * kStep), 1e-6) << i << " " << place;
    }
  }
}

TEST(LightningAttentionProperties, TwoRunsAreEqualAndAHeadIsItsOwn) {
  const Inputs in = random_inputs(33);
  EXPECT_TRUE(run(in, 16).first.equal(run(in, 16).first));
  const auto head = [](const at::Tensor& x) { return x.narrow(2, 1, 1); };
  const auto alone = lightning_attention(head(in.q), head(in.k), head(in.v), in.log_decay.narrow(0, 1, 1),
                                         in.state.narrow(1, 1, 1), 0.35, 16).first;
  EXPECT_LT(relative_error(head(run(in, 16).first), alone), 1e-14);
}

}  // namespace
}  // namespace flashmorph
