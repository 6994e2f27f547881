#include "distributed/parallel/pipeline.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/mpi/world.h"

// A chain of one multiplication a rank, whose values and gradients are whole numbers.

namespace flashmorph {
namespace {

using test::world;

const StateShape kShape{{1, 2, 3}, at::TensorOptions(at::kDouble)};

// Rank r multiplies by r + 2; the last one's loss is the sum. `count` micro-batches start from m + 1.
TEST(Pipeline, ValuesGoForwardAndGradientsComeBack) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  for (const int64_t count : {1, 2, 5, 9}) {
    for (const bool with_teacher : {false, true}) {
      Pipeline pipeline(mesh);
      at::Tensor weight = at::full({}, static_cast<double>(world().rank() + 2), at::kDouble).set_requires_grad(true);
      const std::vector<at::Tensor> losses =
          pipeline.forward_backward({10, 10 + count}, kShape, with_teacher, [&](int64_t m, States x) -> StageOutput {
            if (world().rank() == 0)
              x = {at::full({1, 2, 3}, static_cast<double>(m - 9), at::kDouble), at::full({1, 2, 3}, 0.5, at::kDouble)};
            EXPECT_EQ(x.teacher.defined(), with_teacher || world().rank() == 0);
            if (with_teacher) {
              EXPECT_FALSE(x.teacher.requires_grad());
              EXPECT_EQ(x.teacher[0][1][2].item<double>(), 0.5 + world().rank());
              x.teacher = x.teacher + 1;
            } else {
              x.teacher = at::Tensor();
            }
            x.mixture = x.mixture * weight;
            const bool is_last = world().rank() == world().size() - 1;
            return {x, is_last ? x.mixture.sum() : at::Tensor()};
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
  pipeline.forward_backward({0, 4}, kShape, false, [&](int64_t, const States& x) -> StageOutput {
    const at::Tensor y = (world().rank() == 0 ? at::ones({1, 2, 3}, at::kDouble) : x.mixture) * weight;
    return {{y, {}}, y.sum()};
  });
  EXPECT_EQ(weight.grad().item<double>(),
            4.0 * 6.0 * (world().size() - world().rank()));  // its loss and all later ones
  const auto& traffic = mesh.pipeline().traffic().by_operation;
  const int64_t sent = traffic.contains("send") ? traffic.at("send").calls : 0;
  const bool is_first = world().rank() == 0, is_last = world().rank() == world().size() - 1;
  EXPECT_EQ(sent, 4 * (!is_last + !is_first));
}

TEST(Pipeline, StreamsForwardOnly) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  Pipeline pipeline(mesh);
  std::vector<double> seen;
  pipeline.stream({3, 8}, kShape, [&](int64_t m, const at::Tensor& x) {
    const at::Tensor here = world().rank() == 0 ? at::full({1, 2, 3}, static_cast<double>(m), at::kDouble) : x;
    seen.push_back(here[0][0][0].item<double>());
    return here + 1;
  });
  for (int64_t m = 0; m < 5; ++m) EXPECT_EQ(seen.at(m), static_cast<double>(m + 3 + world().rank()));
}

}  // namespace
}  // namespace flashmorph
