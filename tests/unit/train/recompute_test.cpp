#include "core/train/recompute.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

namespace flashmorph {
namespace {

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

// y = tanh(x W), and a second output z = y^2 of which a caller may make nothing.
struct Layer {
  at::Tensor weight = seeded({4, 4}, 1).set_requires_grad(true);
  int calls = 0;
  TensorFunction function() {
    return [this](const std::vector<at::Tensor>& inputs) {
      ++calls;
      const at::Tensor y = inputs[0].matmul(weight).tanh();
      return std::vector{y, y.square()};
    };
  }
};

TEST(Recompute, GivesTheValuesAndGradientsOfThePlainCall) {
  for (const bool needs_input_gradient : {true, false}) {
    Layer plain, again;
    at::Tensor x = seeded({3, 4}, 2).set_requires_grad(needs_input_gradient);
    at::Tensor same = x.detach().clone().set_requires_grad(needs_input_gradient);
    const auto expected = plain.function()({x});
    (expected[0].sum() + expected[1].prod()).backward();
    const auto outputs = recomputed(again.function(), {same}, {again.weight});
    EXPECT_EQ(again.calls, 1);
    EXPECT_TRUE(outputs[0].equal(expected[0]));
    EXPECT_TRUE(outputs[0].requires_grad());
    (outputs[0].sum() + outputs[1].prod()).backward();
    EXPECT_EQ(again.calls, 2) << "the backward pass runs it once more";
    EXPECT_TRUE(again.weight.grad().equal(plain.weight.grad()));
    if (needs_input_gradient) {
      EXPECT_TRUE(same.grad().equal(x.grad()));
    }
  }
}

TEST(Recompute, AnOutputThatCountsNothingTakesNoPart) {
  Layer plain, again;
  plain.function()({seeded({3, 4}, 2)})[0].sum().backward();
  recomputed(again.function(), {seeded({3, 4}, 2)}, {again.weight})[0].sum().backward();
  EXPECT_TRUE(again.weight.grad().equal(plain.weight.grad()));
}

TEST(Recompute, LayersInARowAddUpInASharedWeight) {
  Layer plain, again;
  at::Tensor x = seeded({3, 4}, 2), y = x;
  for (int layer = 0; layer < 3; ++layer) {
    x = plain.function()({x})[0];
    y = recomputed(again.function(), {y}, {again.weight})[0];
  }
  x.sum().backward();
  y.sum().backward();
  EXPECT_LT((again.weight.grad() - plain.weight.grad()).abs().max().item<double>(), 1e-14);
  EXPECT_EQ(again.calls, 6);
}

TEST(Recompute, WithoutGradientsItIsJustCalled) {
  Layer layer;
  {
    const c10::NoGradGuard no_gradient;
    EXPECT_FALSE(recomputed(layer.function(), {seeded({3, 4}, 2)}, {layer.weight})[0].requires_grad());
  }
  layer.weight = layer.weight.detach();
  EXPECT_FALSE(recomputed(layer.function(), {seeded({3, 4}, 2)}, {layer.weight, at::Tensor()})[0].requires_grad());
}

}  // namespace
}  // namespace flashmorph
