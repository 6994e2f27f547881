#include "distributed/parallel/pipeline.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/ops/projection.h"
#include "tests/mpi/world.h"

// A chain of one multiplication a rank, whose values and gradients are whole numbers.

namespace flashmorph {
namespace {

using test::world;

const StateShape kShape{{1, 2, 3}, at::TensorOptions(at::kDouble)};

// Rank r multiplies by r + 2; the last one's loss is the sum. `count` micro-batches start from m + 1.
TEST(Pipeline, ValuesGoForwardAndGradientsComeBack) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  const bool is_first = world().rank() == 0, is_last = world().rank() == world().size() - 1;
  for (const int64_t count : {1, 2, 5, 9}) {
    for (const bool with_teacher : {false, true}) {
      Pipeline pipeline(mesh);
      at::Tensor weight = at::full({}, static_cast<double>(world().rank() + 2), at::kDouble).set_requires_grad(true);
      const std::vector<at::Tensor> losses =
          pipeline.forward_backward({10, 10 + count}, kShape, [&](int64_t m, const States& states) -> StageOutput {
            if (with_teacher) {
              const at::Tensor before = states.teacher();
              const at::Tensor x = is_first ? at::full({1, 2, 3}, 0.5, at::kDouble) : before;
              EXPECT_FALSE(x.requires_grad());
              EXPECT_EQ(x[0][1][2].item<double>(), 0.5 + world().rank());
              states.pass_teacher_on(x + 1);
            }
            const at::Tensor before = states.mixture();
            EXPECT_EQ(before.defined(), !is_first);
            const at::Tensor x = is_first ? at::full({1, 2, 3}, static_cast<double>(m - 9), at::kDouble) : before;
            return {x * weight, is_last ? (x * weight).sum() : at::Tensor()};
          });
      double product = 1.0, starts = 0.0;
      for (int rank = 0; rank < world().size(); ++rank) product *= rank + 2;
      for (int64_t m = 0; m < count; ++m) {
        starts += static_cast<double>(m + 1);
        ASSERT_EQ(losses[m].defined(), world().rank() == world().size() - 1);
        if (losses[m].defined()) {
          EXPECT_EQ(losses[m].item<double>(), 6.0 * product * static_cast<double>(m + 1));
        }
      }
      EXPECT_EQ(weight.grad().item<double>(), 6.0 * product / (world().rank() + 2) * starts) << count;
    }
  }
}

TEST(Pipeline, EveryRanksOwnLossCountsAndTheFirstSendsNoGradient) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  Pipeline pipeline(mesh);
  at::Tensor weight = at::ones({}, at::kDouble).set_requires_grad(true);
  pipeline.forward_backward({0, 4}, kShape, [&](int64_t, const States& states) -> StageOutput {
    const at::Tensor y = (world().rank() == 0 ? at::ones({1, 2, 3}, at::kDouble) : states.mixture()) * weight;
    return {y, y.sum()};
  });
  EXPECT_EQ(weight.grad().item<double>(),
            4.0 * 6.0 * (world().size() - world().rank()));  // its loss and all later ones
  const auto& traffic = mesh.pipeline().traffic().by_operation;
  const int64_t sent = traffic.contains("send") ? traffic.at("send").calls : 0;
  const bool is_first = world().rank() == 0, is_last = world().rank() == world().size() - 1;
  EXPECT_EQ(sent, 4 * (!is_last + !is_first));
}

// Every rank but the first leaves the products for its weights until it would wait; they are there in the end.
TEST(Pipeline, PutOffGradientsOfWeightsAreThoseOfOneRank) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  const auto seeded = [](at::IntArrayRef sizes, uint64_t seed) {
    return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
  };
  constexpr int64_t kCount = 5;
  std::vector<at::Tensor> weights, own;
  for (int rank = 0; rank < world().size(); ++rank)
    weights.push_back(seeded({3, 3}, 10 + rank).set_requires_grad(true));
  for (int64_t m = 0; m < kCount; ++m) {  // all ranks' layers here
    at::Tensor x = seeded({1, 2, 3}, m);
    for (const at::Tensor& weight : weights) x = at::tanh(at::linear(x, weight));
    x.sum().backward();
  }
  at::Tensor weight = weights[world().rank()].detach().clone().set_requires_grad(true);
  std::vector<bool> had;  // a gradient, when a forward began
  Pipeline(mesh).forward_backward({0, kCount}, kShape, [&](int64_t m, const States& states) -> StageOutput {
    had.push_back(weight.grad().defined());
    const at::Tensor before = states.mixture();
    const at::Tensor y = at::tanh(project(world().rank() == 0 ? seeded({1, 2, 3}, m) : before, weight));
    return {y, world().rank() == world().size() - 1 ? y.sum() : at::Tensor()};
  });
  EXPECT_TRUE(at::allclose(weight.grad(), weights[world().rank()].grad(), 1e-13, 1e-13));
  const int64_t last = world().size() - 1;  // which works one micro-batch after the other
  for (int64_t m = 0; world().rank() == last && m < kCount; ++m) EXPECT_EQ(had[m], m > last) << m;
}

TEST(Pipeline, StreamsForwardOnly) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  Pipeline pipeline(mesh);
  std::vector<double> seen;
  pipeline.stream({3, 8}, kShape, [&](int64_t m, const at::Tensor& x, const PassOn& pass_on) {
    const at::Tensor here = world().rank() == 0 ? at::full({1, 2, 3}, static_cast<double>(m), at::kDouble) : x;
    seen.push_back(here[0][0][0].item<double>());
    pass_on(here + 1);
  });
  for (int64_t m = 0; m < 5; ++m) EXPECT_EQ(seen.at(m), static_cast<double>(m + 3 + world().rank()));
}

}  // namespace
}  // namespace flashmorph
