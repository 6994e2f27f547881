#include "distributed/parallel/zero.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/mpi/world.h"

namespace flashmorph {
namespace {

using test::world;

std::vector<at::Tensor> seeded(uint64_t seed, const std::vector<std::vector<int64_t>>& shapes) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  std::vector<at::Tensor> tensors;
  for (const auto& shape : shapes) tensors.push_back(at::randn(shape, generator, at::TensorOptions(at::kDouble)));
  return tensors;
}

TEST(Zero, UpdatesAsAdamWDoesWithAShareOfItsStates) {
  // Pieces that start and end inside tensors, a tensor smaller than a share, and fewer elements than ranks.
  for (const std::vector<std::vector<int64_t>>& shapes :
       {std::vector<std::vector<int64_t>>{{5, 3}, {1}, {7, 11}, {2, 2}}, std::vector<std::vector<int64_t>>{{2}}}) {
    const AdamW::Options options{.weight_decay = 0.1};
    const std::vector<at::Tensor> whole = seeded(1, shapes), shared = seeded(1, shapes);
    AdamW expected(whole, options);
    DataShardedAdamW optimizer(shared, options, world());
    for (uint64_t step = 0; step < 4; ++step) {
      const std::vector<at::Tensor> gradients = seeded(2 + step, shapes);
      expected.step(gradients, 1e-2);
      optimizer.step(gradients, 1e-2);
    }
    int64_t elements = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      EXPECT_TRUE(shared[i].allclose(whole[i], 1e-14, 0.0)) << i;
      elements += whole[i].numel();
    }
    at::Tensor states = at::full({1}, optimizer.state_elements(), at::kLong);
    EXPECT_LE(states.item<int64_t>(), 2 * ((elements + world().size() - 1) / world().size()));
    world().all_reduce(states, Reduction::sum);
    EXPECT_EQ(states.item<int64_t>(), 2 * elements);
  }
}

}  // namespace
}  // namespace flashmorph
