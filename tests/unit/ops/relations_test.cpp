// The operators where they become each other, or something simpler. Letters: B batch, T tokens, H heads, K key dim.
#include <c10/core/GradMode.h>

#include "tests/unit/ops/recurrences.h"

namespace flashmorph::test {
namespace {

at::Tensor orthonormal_keys(int64_t tokens, int64_t K) {
  const at::Tensor random = at::randn({2, kHeads, K, K}, at::detail::createCPUGenerator(1), at::kDouble);
  return std::get<0>(at::linalg_qr(random)).narrow(2, 0, tokens).transpose(1, 2).contiguous();  // [B, T, H, K]
}

TEST(Relations, WithoutDecayItIsPlainCausalLinearAttention) {
  for (const Operator& op : {lightning(), gated_linear()}) {
    const Inputs base = random_inputs(op, 37), in = base.with("g", at::zeros_like(base["g"])).without_state();
    const at::Tensor q = in["q"].transpose(1, 2), k = in["k"].transpose(1, 2), v = in["v"].transpose(1, 2);
    const at::Tensor expected = at::matmul(at::tril(at::matmul(q, k.transpose(2, 3))), v).transpose(1, 2) * kScale;
    EXPECT_LT(relative_error(expected, op.run(in, std::nullopt, 16).first), 1e-12) << op.name;
  }
}

TEST(Relations, LightningIsGatedLinearAttentionOfOneDecayAHead) {
  const Inputs in = random_inputs(lightning(), 75), other = in.copy();
  const at::Tensor g = in["g"].view({1, 1, kHeads, 1}).expand({2, 75, kHeads, 8});
  const Results expected = lightning().run(in, std::nullopt, 32);
  const Results actual =
      gated_linear_attention(other["q"], other["k"], other["v"], g, other["state"], std::nullopt, kScale, 32);
  expect_equal_with_gradients(in, expected, other, actual, 1e-12);
}

TEST(Relations, WithoutWritingTheDeltaRuleOnlyForgets) {
  const Inputs base = random_inputs(gated_delta(), 50), in = base.with("beta", at::zeros_like(base["beta"]));
  const at::Tensor b = in["g"].cumsum(1).exp().unsqueeze(-1);
  const at::Tensor read = at::einsum("bhkv,bthk->bthv", {in["state"], in["q"]});
  const Results actual = gated_delta().run(in, std::nullopt, 16);
  EXPECT_LT(relative_error(kScale * b * read, actual.first), 1e-13);
  actual.first.sum().backward();
  EXPECT_GT(in["beta"].grad().abs().min().item<double>(), 0.0) << "it could start to write";
}

TEST(Relations, OnOrthonormalKeysTheDeltaRuleIsGatedLinearAttention) {
  const int64_t tokens = 12, K = 16;
  const Inputs base = random_inputs(gated_delta(), tokens, K);
  const Inputs in =
      base.with("k", orthonormal_keys(tokens, K)).with("beta", at::ones_like(base["beta"])).without_state();
  const at::Tensor g = in["g"].unsqueeze(-1).expand_as(in["k"]);
  const Results expected = gated_linear_attention(in["q"], in["k"], in["v"], g, std::nullopt, std::nullopt, kScale, 5);
  const Results actual = gated_delta().run(in, std::nullopt, 5);
  EXPECT_LT(relative_error(expected.first, actual.first), 1e-13);
  EXPECT_LT(relative_error(expected.second, actual.second), 1e-13);
}

TEST(Relations, OfARepeatedKeyTheLastValueStays) {
  const Inputs base = random_inputs(gated_delta(), 40);
  const at::Tensor key = base["k"].detach().narrow(1, 0, 1).expand({2, 40, kHeads, 8}).contiguous();
  const Inputs in = base.with("k", key).with("g", at::zeros_like(base["g"])).with("beta", at::ones_like(base["beta"]));
  const at::Tensor state = gated_delta().run(in, std::nullopt, 16).second;
  const at::Tensor held = at::einsum("bhkv,bhk->bhv", {state, key.select(1, 39)});
  EXPECT_LT(relative_error(in["v"].select(1, 39), held), 1e-13);
}

TEST(Relations, ReflectionsKeepTheLengthOfTheState) {
  const Inputs base = random_inputs(gated_delta(), 300);
  const Inputs in = base.with("g", at::zeros_like(base["g"]))
                        .with("beta", at::full_like(base["beta"], 2.0))
                        .with("v", at::zeros_like(base["v"]));
  const at::Tensor state = gated_delta().run(in, std::nullopt, 64).second;
  const auto length = [](const at::Tensor& S) { return S.detach().flatten(2).norm(2, {2}); };
  EXPECT_LT(relative_error(length(in["state"]), length(state)), 1e-12);
}

// The worst systems to solve: keys that are nearly the same, written with full strength and beyond.
TEST(Relations, NearlyParallelKeysAreSolvedInFloat32) {
  for (const double beta : {1.0, 1.99}) {
    const Inputs base = random_inputs(gated_delta(), 150);
    const at::Tensor k = base["k"].detach().narrow(1, 0, 1) + 1e-3 * base["k"].detach();
    const Inputs exact = base.with("k", k / k.norm(2, {-1}, /*keepdim=*/true))
                             .with("beta", at::full_like(base["beta"], beta))
                             .with("g", base["g"].detach() * 0.01);
    const Inputs in = exact.to(at::kFloat);
    const Results expected = gated_delta().define(exact), actual = gated_delta().run(in, std::nullopt, 64);
    EXPECT_LT(relative_error(expected.first, actual.first), 1e-4) << beta;
    EXPECT_LT(relative_error(expected.second, actual.second), 1e-4) << beta;
  }
}

TEST(Relations, KeysAndValuesTradeTheirScale) {
  for (const Operator& op : {lightning(), gated_linear()}) {
    const c10::NoGradGuard no_gradient;
    const Inputs in = random_inputs(op, 37);
    Inputs traded = in.without_state();
    traded.tensors["k"] = in["k"] * 8.0;
    traded.tensors["v"] = in["v"] / 8.0;
    EXPECT_LT(
        relative_error(op.run(in.without_state(), std::nullopt, 16).first, op.run(traded, std::nullopt, 16).first),
        1e-14);
  }
}

// Several query heads of one kv head: explicit copies, whose gradients sum over the group.
TEST(Relations, GroupedHeadsAreCopiesWhoseGradientsAddUp) {
  const Inputs in = random_inputs(gated_delta(), 20, 8, 4, 1);
  const at::Tensor q = at::randn({1, 20, 6, 8}, at::detail::createCPUGenerator(2), at::kDouble);
  const auto twice = [](const at::Tensor& x) { return x.repeat_interleave(2, 2); };
  const at::Tensor grouped = gated_delta_rule(q, twice(in["k"]), twice(in["v"]), twice(in["g"]), twice(in["beta"]),
                                              std::nullopt, std::nullopt, kScale, 16)
                                 .first;
  grouped.sum().backward();
  const Inputs copies = in.copy();
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (const int64_t which : {0, 1}) {
    const at::Tensor own = q.slice(2, which, 6, 2);
    const at::Tensor one = gated_delta_rule(own, copies["k"], copies["v"], copies["g"], copies["beta"], std::nullopt,
                                            std::nullopt, kScale, 16)
                               .first;
    EXPECT_LT(relative_error(one, grouped.slice(2, which, 6, 2)), 1e-13);
    sum = sum + one.sum();
  }
  sum.backward();
  for (const char* name : {"k", "v", "g", "beta"})
    EXPECT_LT(relative_error(copies[name].grad(), in[name].grad()), 1e-12) << name;
}

}  // namespace
}  // namespace flashmorph::test
