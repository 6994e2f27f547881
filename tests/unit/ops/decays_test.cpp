// Decays of every size, and the gradient of a learned one. Letters: B batch, T tokens, H heads, K key dim, V value dim.
#include <c10/core/GradMode.h>

#include "tests/unit/ops/recurrences.h"

namespace flashmorph::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const std::vector<Operator>& learned() {
  static const std::vector<Operator> all = {scalar_gated(), gated_linear(), gated_delta()};
  return all;
}

void expect_finite(const Inputs& in) {
  for (const auto& [name, gradient] : in.gradients()) EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << name;
}

// The definition multiplies by exp(g), which knows no gradient at -inf: its own is exact there for all but g.
TEST(LightningDecays, StrongOnesAreExactAndFinite) {
  const Operator op = lightning();
  for (const auto type : {at::kDouble, at::kFloat})
    for (const at::Tensor& g : {at::tensor({-50.0, -1e4, -0.7071}), at::tensor({-kInfinity, -0.5, 0.0})}) {
      const Inputs exact = random_inputs(op, 135).with("g", g.to(at::kDouble)), in = exact.to(type);
      expect_equal_with_gradients(exact, op.define(exact), in, op.run(in, std::nullopt, 128),
                                  type == at::kDouble ? 1e-10 : 1e-5);
      expect_finite(in);
    }
}

class LearnedDecays : public testing::TestWithParam<Operator> {
 protected:
  const Operator& op() const { return GetParam(); }
  Results run(const Inputs& in, int64_t chunk) const { return op().run(in, std::nullopt, chunk); }
  double tolerance(at::ScalarType type) const { return type == at::kDouble ? 1e-10 : op().float_tolerance; }
};

INSTANTIATE_TEST_SUITE_P(Operators, LearnedDecays, testing::ValuesIn(learned()),
                         [](const auto& info) { return info.param.name; });

TEST_P(LearnedDecays, StrongOnesAreExactAndFinite) {
  for (const auto type : {at::kDouble, at::kFloat})
    for (const double g : {-50.0, -1e4, -kInfinity}) {
      SCOPED_TRACE(testing::Message() << "g " << g << " " << type);
      const Inputs base = random_inputs(op(), 135);
      const Inputs exact = base.with("g", at::full_like(base["g"], g)), in = exact.to(type);
      const Results expected = op().define(exact), actual = run(in, 64);
      EXPECT_LT(relative_error(expected.first, actual.first), tolerance(type));
      EXPECT_LT(relative_error(expected.second, actual.second), tolerance(type));
      backward(expected);
      backward(actual);
      for (const char* name : {"q", "k", "v"})
        EXPECT_LT(relative_error(exact[name].grad(), in[name].grad()), tolerance(type)) << name;
      EXPECT_LT(max_abs_error(exact["g"].grad().nan_to_num(0.0), in["g"].grad()), 1e-18) << "g";
      expect_finite(in);
    }
}

// o_t = s (q_t . k_t) beta_t v_t when all before is forgotten.
TEST_P(LearnedDecays, ForgettingEverythingLeavesTheTokenItself) {
  const Inputs base = random_inputs(op(), 70), in = base.with("g", at::full_like(base["g"], -kInfinity));
  const at::Tensor beta = op().name == "gated_delta" ? in["beta"].unsqueeze(-1) : at::ones({1}, at::kDouble);
  const at::Tensor expected = kScale * (in["q"] * in["k"]).sum(-1, /*keepdim=*/true) * beta * in["v"];
  EXPECT_LT(relative_error(expected, run(in, 64).first), 1e-14);
}

TEST_P(LearnedDecays, AMixtureOfWeakAndStrongIsExact) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const Inputs base = random_inputs(op(), 150, 8, 4, 2, 0.02);
    const at::Tensor g = base["g"].detach().clone();
    g.narrow(1, 20, 9).sub_(30.0);                                   // a block inside a chunk
    g.narrow(1, 75, 40).select(2, 1).sub_(2.4);                      // one head across two chunks
    if (g.dim() == 4) g.narrow(1, 100, 30).select(3, 5).sub_(30.0);  // one channel only
    const Inputs exact = base.with("g", g), in = exact.to(type);
    expect_equal_with_gradients(exact, op().define(exact), in, run(in, 64), tolerance(type));
  }
}

TEST_P(LearnedDecays, AResetInsideAChunkStartsAfresh) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const Inputs base = random_inputs(op(), 90).to(type);
    const at::Tensor g = base["g"].detach().clone();
    g.select(1, 37).fill_(-kInfinity);
    const Inputs in = base.with("g", g);
    const Results whole = run(in, 64), fresh = run(in.tokens(37, 53).without_state(), 64);
    EXPECT_LT(relative_error(fresh.first, whole.first.narrow(1, 37, 53)), tolerance(type));
    EXPECT_LT(relative_error(fresh.second, whole.second), tolerance(type));
  }
}

TEST_P(LearnedDecays, NoDecayOverManyTokensGrowsOnlyLinearly) {
  const c10::NoGradGuard no_gradient;
  const Inputs base = random_inputs(op(), 1 << 15, 8, 4, 1).to(at::kFloat);
  const Inputs in = base.with("g", at::zeros_like(base["g"]));
  const Results results = run(in.without_state(), 64);
  EXPECT_TRUE(results.first.isfinite().all().item<bool>());
  const double bound = op().name == "gated_delta" ? 1e3 : static_cast<double>(1 << 15) * 10.0;
  EXPECT_LT(results.second.abs().max().item<double>(), bound);
}

// Another exact form, chunk by chunk of one token: dg_i = sum over m >= i of (o_m . do_m - v_m . dv_m) + <S_T, dS_T>,
// or per channel (q_m dq_m - k_m dk_m) + rowsum(S_T dS_T) for GLA. It subtracts large sums, so float64 only.
at::Tensor identity_gradient(const Inputs& in, const Results& results, const at::Tensor& d_output,
                             const at::Tensor& d_state) {
  const auto from = [](const at::Tensor& x) { return x.flip(1).cumsum(1).flip(1); };
  if (in["g"].dim() == 4)
    return from(in["q"] * in["q"].grad() - in["k"] * in["k"].grad()) + (results.second * d_state).sum(-1).unsqueeze(1);
  return from((results.first * d_output).sum(-1) - (in["v"] * in["v"].grad()).sum(-1)) +
         (results.second * d_state).sum(at::IntArrayRef{-1, -2}).unsqueeze(1);
}

TEST_P(LearnedDecays, TheGradientHoldsForDecaysOfEverySize) {
  for (const double mean : {0.002, 0.024, 0.24, 2.4}) {
    SCOPED_TRACE(mean);
    const Inputs exact = random_inputs(op(), 300, 8, 4, 1, mean), in = exact.to(at::kFloat);
    const Results results = run(exact, 64), fast = run(in, 64);
    const at::Generator generator = at::detail::createCPUGenerator(5);
    const at::Tensor d_output = at::randn(results.first.sizes(), generator, at::kDouble),
                     d_state = at::randn(results.second.sizes(), generator, at::kDouble);
    ((results.first * d_output).sum() + (results.second * d_state).sum()).backward();
    ((fast.first * d_output.to(at::kFloat)).sum() + (fast.second * d_state.to(at::kFloat)).sum()).backward();
    const c10::NoGradGuard no_gradient;
    const at::Tensor oracle = identity_gradient(exact, results, d_output, d_state);
    EXPECT_LT(relative_error(oracle, exact["g"].grad()), 1e-11);
    EXPECT_LT(relative_error(exact["g"].grad(), in["g"].grad()), 2e-6) << "float32, as good as the other gradients";
  }
}

}  // namespace
}  // namespace flashmorph::test
