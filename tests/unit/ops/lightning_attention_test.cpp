#include "core/ops/linear_attention.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "tests/reference/lightning_attention.h"
#include "tests/support/tensors.h"

// Letters: B batch, T tokens, H heads, K key dim, V value dim.

namespace flashmorph {
namespace {

using test::relative_error;

constexpr double kScale = 0.35;

struct Inputs {
  at::Tensor q, k, v, log_decay, state;

  Inputs to(at::ScalarType type) const {
    const auto leaf = [&](const at::Tensor& x) { return x.detach().to(type).clone().set_requires_grad(true); };
    return {leaf(q), leaf(k), leaf(v), log_decay, leaf(state)};
  }
  Inputs first_row() const {
    return Inputs{q.narrow(0, 0, 1), k.narrow(0, 0, 1), v.narrow(0, 0, 1), log_decay, state.narrow(0, 0, 1)}.copy();
  }
  Inputs copy() const { return to(q.scalar_type()); }
  std::vector<at::Tensor> leaves() const { return {q, k, v, state}; }
  std::vector<at::Tensor> gradients() const { return {q.grad(), k.grad(), v.grad(), state.grad()}; }
};

Inputs random_inputs(int64_t T, int64_t K = 8, int64_t V = 4) {
  at::manual_seed(T * 100 + K);
  const auto exact = at::TensorOptions(at::kDouble);
  return Inputs{at::randn({2, T, 3, K}, exact), at::randn({2, T, 3, K}, exact), at::randn({2, T, 3, V}, exact),
                at::tensor({-0.7, -0.05, -0.002}, exact), at::randn({2, 3, K, V}, exact)}
      .copy();
}

using Results = std::pair<at::Tensor, at::Tensor>;

Results run(const Inputs& in, int64_t chunk) {
  return lightning_attention(in.q, in.k, in.v, in.log_decay, in.state, std::nullopt, kScale, chunk);
}

Results define(const Inputs& in) {
  return test::lightning_definition(in.q, in.k, in.v, in.log_decay, in.state, kScale);
}

// Backward through both outputs with upstream gradients that depend only on the shapes.
void backward(const Results& results) {
  at::manual_seed(7);
  const auto exact = at::TensorOptions(at::kDouble);
  const auto upstream = [&](const at::Tensor& x) { return at::randn(x.sizes(), exact).to(x.scalar_type()); };
  const at::Tensor d_output = upstream(results.first), d_state = upstream(results.second);
  ((results.first * d_output).sum() + (results.second * d_state).sum()).backward();
}

void expect_equal_with_gradients(const Inputs& exact, const Results& expected, const Inputs& in, const Results& actual,
                                 double tolerance) {
  EXPECT_LT(relative_error(expected.first, actual.first), tolerance) << "output";
  EXPECT_LT(relative_error(expected.second, actual.second), tolerance) << "final state";
  backward(expected);
  backward(actual);
  const char* names[] = {"q", "k", "v", "state"};
  for (size_t i = 0; i < 4; ++i)
    EXPECT_LT(relative_error(exact.gradients()[i], in.gradients()[i]), tolerance) << "gradient of " << names[i];
}

struct Case {
  int64_t tokens, chunk;
};

class LightningAttention : public testing::TestWithParam<Case> {};

TEST_P(LightningAttention, ChunkedIsTheDefinitionForwardAndBackward) {
  const auto [tokens, chunk] = GetParam();
  for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-10), {at::kFloat, 1e-5}}) {
    const Inputs exact = random_inputs(tokens), fast = exact.to(type);
    const Results actual = run(fast, chunk);
    EXPECT_EQ(actual.second.scalar_type(), type);
    expect_equal_with_gradients(exact, define(exact), fast, actual, tolerance);
  }
}

// T = 1, C - 1, C, C + 1, 2C + 7 and 513, for several C.
INSTANTIATE_TEST_SUITE_P(Lengths, LightningAttention,
                         testing::Values(Case{1, 16}, Case{15, 16}, Case{16, 16}, Case{17, 16}, Case{39, 16},
                                         Case{513, 64}, Case{3, 1}, Case{39, 2}, Case{63, 64}, Case{65, 64},
                                         Case{135, 64}, Case{263, 128}));

TEST(LightningAttentionProperties, TheChunkChangesNothing) {
  const Inputs base = random_inputs(131);
  for (const int64_t chunk : {1, 2, 16, 32, 64, 128}) {
    const Inputs whole = base.copy(), in = base.copy();
    expect_equal_with_gradients(whole, run(whole, 131), in, run(in, chunk), 1e-12);
  }
}

TEST(LightningAttentionProperties, StatePassesFromOnePartToTheNextForwardAndBackward) {
  const Inputs whole = random_inputs(41), in = whole.copy();
  const auto part = [&](int64_t first, int64_t count, const at::Tensor& state) {
    const auto cut = [&](const at::Tensor& x) { return x.narrow(1, first, count); };
    return run({cut(in.q), cut(in.k), cut(in.v), in.log_decay, state}, 16);
  };
  const auto [a, between] = part(0, 13, in.state);
  const auto [b, last] = part(13, 28, between);
  expect_equal_with_gradients(whole, run(whole, 16), in, {at::cat({a, b}, 1), last}, 1e-12);
}

TEST(LightningAttentionProperties, PackedDocumentsAreRunApart) {
  const std::vector<int64_t> offsets = {0, 1, 17, 19, 51, 90};  // shorter than a chunk, one, two and a ragged end
  for (const bool with_state : {true, false}) {
    Inputs packed = random_inputs(90).first_row();
    packed.state = at::randn({5, 3, 8, 4}, at::kDouble).set_requires_grad(true);
    const Inputs apart = packed.copy();
    const auto state_of = [&](const Inputs& in) { return with_state ? std::optional(in.state) : std::nullopt; };
    std::vector<at::Tensor> outputs, states;
    for (size_t d = 0; d < 5; ++d) {
      const auto own = [&](const at::Tensor& x) { return x.narrow(1, offsets[d], offsets[d + 1] - offsets[d]); };
      const auto initial = with_state ? std::optional(apart.state.narrow(0, d, 1)) : std::nullopt;
      const Results one = lightning_attention(own(apart.q), own(apart.k), own(apart.v), apart.log_decay, initial,
                                              std::nullopt, kScale, 16);
      outputs.push_back(one.first);
      states.push_back(one.second);
    }
    const Results expected = {at::cat(outputs, 1), at::cat(states)};
    const Results actual = lightning_attention(packed.q, packed.k, packed.v, packed.log_decay, state_of(packed),
                                               at::tensor(offsets), kScale, 16);
    EXPECT_LT(relative_error(expected.first, actual.first), 1e-14);
    EXPECT_LT(relative_error(expected.second, actual.second), 1e-14);
    backward(expected);
    backward(actual);
    for (size_t i = 0; i < (with_state ? 4 : 3); ++i)
      EXPECT_LT(relative_error(apart.gradients()[i], packed.gradients()[i]), 1e-14) << i;
  }
}

TEST(LightningAttentionProperties, DocumentsThatDoNotFitAreRefused) {
  const Inputs two_rows = random_inputs(5), in = two_rows.first_row();
  const auto packed = [](const Inputs& in, const at::Tensor& documents) {
    return lightning_attention(in.q, in.k, in.v, in.log_decay, std::nullopt, documents, kScale, 16);
  };
  EXPECT_NO_THROW(packed(in, at::tensor({int64_t{0}, int64_t{2}, int64_t{5}})));
  const auto wrong = [](std::vector<int64_t> offsets) { return at::tensor(offsets); };
  for (const auto& offsets : {wrong({0, 2, 4}), wrong({1, 5}), wrong({0, 3, 3, 5}), wrong({0, 4, 2, 5}), wrong({0})})
    EXPECT_THROW(packed(in, offsets), c10::Error) << offsets;
  EXPECT_THROW(packed(in, at::tensor({0.0, 5.0})), c10::Error);
  EXPECT_THROW(packed(two_rows, wrong({0, 5})), c10::Error);
}

TEST(LightningAttentionProperties, NoInitialStateIsAZeroState) {
  const Inputs zero = random_inputs(21), absent = zero.copy();
  zero.state.detach().zero_();
  const Results actual = lightning_attention(absent.q, absent.k, absent.v, absent.log_decay, std::nullopt, std::nullopt, kScale, 16);
  const Results expected = run(zero, 16);
  EXPECT_TRUE(expected.first.equal(actual.first));
  backward(expected);
  backward(actual);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(zero.gradients()[i].equal(absent.gradients()[i])) << i;
  EXPECT_FALSE(absent.state.grad().defined());
}

// Only one of the two outputs is used: the other's gradient is absent, not wrong.
TEST(LightningAttentionProperties, EitherOutputAloneCarriesItsGradient) {
  for (const bool use_state : {false, true}) {
    const Inputs exact = random_inputs(21), in = exact.copy();
    const auto loss = [&](const Results& results) { return (use_state ? results.second : results.first).sin().sum(); };
    loss(define(exact)).backward();
    loss(run(in, 16)).backward();
    const auto or_zero = [](const at::Tensor& gradient, const at::Tensor& like) {
      return gradient.defined() ? gradient : at::zeros_like(like);
    };
    for (size_t i = 0; i < 4; ++i)
      EXPECT_LT(relative_error(or_zero(exact.gradients()[i], exact.leaves()[i]), in.gradients()[i]), 1e-12) << i;
  }
}

TEST(LightningAttentionProperties, NothingLooksAhead) {
  const Inputs in = random_inputs(40), changed = in.copy();
  for (const at::Tensor& x : {changed.q, changed.k, changed.v}) x.detach().narrow(1, 20, 20).fill_(100.0);
  const at::Tensor before = run(in, 16).first, after = run(changed, 16).first;
  EXPECT_TRUE(before.narrow(1, 0, 20).equal(after.narrow(1, 0, 20)));
  EXPECT_FALSE(before.narrow(1, 20, 1).equal(after.narrow(1, 20, 1)));

  before.narrow(1, 0, 20).sum().backward();
  for (const at::Tensor& x : {in.q, in.k, in.v}) {
    EXPECT_EQ(x.grad().narrow(1, 20, 20).abs().max().item<double>(), 0.0);
    EXPECT_GT(x.grad().narrow(1, 0, 20).abs().max().item<double>(), 0.0);
  }
}

TEST(LightningAttentionProperties, WithoutDecayItIsPlainCausalLinearAttention) {
  Inputs in = random_inputs(37);
  in.log_decay = at::zeros({3}, at::kDouble);
  in.state.detach().zero_();
  const at::Tensor q = in.q.transpose(1, 2), k = in.k.transpose(1, 2), v = in.v.transpose(1, 2);
  const at::Tensor expected = at::matmul(at::tril(at::matmul(q, k.transpose(2, 3))), v).transpose(1, 2) * kScale;
  EXPECT_LT(relative_error(expected, run(in, 16).first), 1e-12);
}

TEST(LightningAttentionProperties, StrongDecaysAreExactAndFinite) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    Inputs exact = random_inputs(135);
    exact.log_decay = at::tensor({-50.0, -1e4, -0.7071}, at::kDouble);
    const Inputs in = exact.to(type);
    expect_equal_with_gradients(exact, define(exact), in, run(in, 128), type == at::kDouble ? 1e-10 : 1e-5);
    for (const at::Tensor& gradient : in.gradients()) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
  }
}

TEST(LightningAttentionProperties, LinearInValueAndStateTogether) {
  const c10::NoGradGuard no_gradient;
  const Inputs a = random_inputs(37), b = random_inputs(37, 8, 4);
  Inputs other = b, sum = a;
  other.q = a.q;
  other.k = a.k;
  other.v = b.v.flip(1);
  other.state = b.state.flip(0);
  sum.v = a.v + 2 * other.v;
  sum.state = a.state + 2 * other.state;
  const Results ra = run(a, 16), rb = run(other, 16), rs = run(sum, 16);
  EXPECT_LT(relative_error(ra.first + 2 * rb.first, rs.first), 1e-13);
  EXPECT_LT(relative_error(ra.second + 2 * rb.second, rs.second), 1e-13);
}

TEST(LightningAttentionProperties, CentralDifferences) {
  const Inputs in = random_inputs(11, 4, 3);
  const auto loss = [&] {
    const auto [output, state] = run(in, 4);
    return output.square().sum() + state.sin().sum();
  };
  loss().backward();
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < 4; ++i) {
    const at::Tensor flat = in.leaves()[i].detach().view(-1), gradient = in.gradients()[i].flatten();
    for (int64_t place = 0; place < flat.numel(); place += 3) {
      const double here = flat[place].item<double>();
      flat[place].fill_(here + kStep);
      const double above = loss().item<double>();
      flat[place].fill_(here - kStep);
      const double below = loss().item<double>();
      flat[place].fill_(here);
      EXPECT_NEAR(gradient[place].item<double>(), (above - below) / (2 * kStep), 1e-6) << i << " " << place;
    }
  }
}

TEST(LightningAttentionProperties, TwoRunsAreEqualBitForBit) {
  const Inputs in = random_inputs(133), again = in.copy();
  const Results first = run(in, 64), second = run(again, 64);
  EXPECT_TRUE(first.first.equal(second.first) && first.second.equal(second.second));
  backward(first);
  backward(second);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(in.gradients()[i].equal(again.gradients()[i])) << i;
}

TEST(LightningAttentionProperties, AHeadIsItsOwn) {
  const Inputs in = random_inputs(33);
  const at::Tensor whole = run(in, 16).first;
  for (int64_t h = 0; h < 3; ++h) {
    const auto head = [&](const at::Tensor& x) { return x.narrow(2, h, 1); };
    const Results alone = run({head(in.q), head(in.k), head(in.v), in.log_decay.narrow(0, h, 1), in.state.narrow(1, h, 1)}, 16);
    EXPECT_LT(relative_error(head(whole), alone.first), 1e-14) << h;
  }
}

TEST(LightningAttentionProperties, AnyStridesGiveTheSameNumbers) {
  const Inputs in = random_inputs(35);
  const auto strided = [](const at::Tensor& x) { return x.transpose(1, 2).contiguous().transpose(1, 2); };
  const Results expected = run(in, 16);
  const Results actual = run({strided(in.q), strided(in.k), strided(in.v), in.log_decay, in.state}, 16);
  EXPECT_TRUE(expected.first.equal(actual.first));
}

TEST(LightningAttentionProperties, ShapesThatDoNotFitAreRefused) {
  const Inputs in = random_inputs(5);
  EXPECT_THROW(run({in.q, in.k.narrow(1, 0, 4), in.v, in.log_decay, in.state}, 16), c10::Error);
  EXPECT_THROW(run({in.q, in.k, in.v, in.log_decay.narrow(0, 0, 2), in.state}, 16), c10::Error);
  EXPECT_THROW(run({in.q, in.k, in.v, in.log_decay, in.state.narrow(1, 0, 2)}, 16), c10::Error);
  EXPECT_THROW(run(in, 0), c10::Error);
}

}  // namespace
}  // namespace flashmorph
