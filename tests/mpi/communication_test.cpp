#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/on_all_ranks.h"
#include "tests/mpi/world.h"

namespace flashmorph {
namespace {

using test::world;

TEST(MpiCommunicator, IntegersReduceExactly) {
  const int64_t ranks = world().size();
  at::Tensor values = at::full({3}, int64_t{world().rank()} + 1, at::kLong);
  world().all_reduce(values, Reduction::sum);
  EXPECT_TRUE(values.eq(ranks * (ranks + 1) / 2).all().item<bool>());
  at::Tensor largest = at::full({1}, int64_t{world().rank()}, at::kLong);
  world().all_reduce(largest, Reduction::max);
  EXPECT_EQ(largest.item<int64_t>(), ranks - 1);
  EXPECT_GE(world().traffic().by_operation.at("all_reduce").calls, 2);
}

TEST(MpiCommunicator, EveryRankGetsTheSameBits) {
  at::manual_seed(world().rank());
  at::Tensor sum = at::randn({100003});
  world().all_reduce(sum, Reduction::sum);
  const at::Tensor all = world().all_gather(sum);
  for (int64_t rank = 0; rank < world().size(); ++rank) EXPECT_TRUE(all[rank].equal(sum)) << rank;
}

TEST(MpiCommunicator, ShortNumbersAreAddedInFloat32AndMovedAsTheyAre) {
  const int64_t ranks = world().size();
  at::Tensor sum = at::full({5}, world().rank() == 0 ? 1.0 : 0.00390625, at::kBFloat16);  // 1 + 2^-8 rounds to 1
  world().all_reduce(sum, Reduction::sum);
  EXPECT_TRUE(sum.equal(at::full({5}, 1.0 + 0.00390625 * static_cast<double>(ranks - 1)).to(at::kBFloat16)));
  const at::Tensor all = world().all_gather(at::full({3}, 0.5 + static_cast<double>(world().rank()), at::kBFloat16));
  for (int64_t rank = 0; rank < ranks; ++rank) EXPECT_EQ(all[rank][2].item<float>(), 0.5f + static_cast<float>(rank));
}

TEST(MpiCommunicator, GathersInRankOrderAndBroadcasts) {
  const at::Tensor all = world().all_gather(at::full({2}, static_cast<double>(world().rank()), at::kDouble));
  for (int64_t rank = 0; rank < world().size(); ++rank)
    EXPECT_EQ(all[rank][1].item<double>(), static_cast<double>(rank));
  const int last = world().size() - 1;
  const std::string text(3'000'000, 'x');
  EXPECT_EQ(world().broadcast_text(world().rank() == last ? text : "", last), text);
  EXPECT_EQ(world().broadcast_text("", 0), "");
}

TEST(MpiCommunicator, SendsAroundARing) {
  if (world().size() == 1) return;
  const int next = (world().rank() + 1) % world().size(),
            before = (world().rank() + world().size() - 1) % world().size();
  const at::Tensor mine = at::full({4}, int64_t{world().rank()}, at::kLong);
  at::Tensor theirs = at::empty({4}, at::kLong);
  if (world().rank() % 2 == 0) {
    world().send(mine, next);
    world().receive(theirs, before);
  } else {
    world().receive(theirs, before);
    world().send(mine, next);
  }
  EXPECT_TRUE(theirs.eq(before).all().item<bool>());
}

TEST(MpiCommunicator, LaterSendsNeedNoReceiverAndKeepTheirOrder) {
  if (world().size() == 1) return;
  const int next = (world().rank() + 1) % world().size(),
            before = (world().rank() + world().size() - 1) % world().size();
  for (const int64_t count : {1, 300000}) {  // larger than what MPI would buffer
    for (int64_t message = 0; message < 5; ++message)
      world().send_later(at::full({count}, 10 * world().rank() + message, at::kLong), next);  // everybody sends first
    for (int64_t message = 0; message < 5; ++message) {
      at::Tensor theirs = at::empty({count}, at::kLong);
      world().receive(theirs, before);
      EXPECT_TRUE(theirs.eq(10 * before + message).all().item<bool>());
    }
    world().finish_sends();
  }
}

TEST(Mesh, PlacesRanksWithTensorNeighbours) {
  for (const int64_t tensor : {1, 2, 4}) {
    if (world().size() % tensor != 0) {
      EXPECT_THROW(MeshShape::of(world().size(), tensor), BadInput);
      continue;
    }
    Mesh mesh(world(), MeshShape::of(world().size(), tensor));
    EXPECT_EQ(mesh.tensor_rank(), world().rank() % tensor);
    EXPECT_EQ(mesh.data_rank(), world().rank() / tensor);
    EXPECT_EQ(mesh.tensor().size(), tensor);
    EXPECT_EQ(mesh.data().size(), world().size() / tensor);
    EXPECT_EQ(mesh.shard().rank(), mesh.tensor_rank());
  }
}

TEST(Gradients, RowsComeInSampleOrderForAnyDataSize) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const MicroBatchRange mine = local_micro_batches(8, mesh);
  const at::Tensor all = at::arange(24, at::kDouble).view({8, 3});
  EXPECT_TRUE(gather_in_sample_order(all.narrow(0, mine.first, mine.last - mine.first), 8, mesh).equal(all));
}

TEST(Gradients, TheNormIsThatOfTheWholeModel) {
  Mesh mesh(world(), MeshShape::of(world().size(), world().size()));
  const int64_t ranks = world().size();
  const at::Tensor whole = at::arange(4 * ranks, at::kDouble), replicated = at::full({2}, 3.0, at::kDouble);
  const at::Tensor slice = whole.narrow(0, 4 * world().rank(), 4);
  std::vector<at::Tensor> gradients = {slice.clone(), replicated.clone()};
  const Parameters parameters = {{"sliced", slice, Split::rows}, {"whole", replicated, Split::none}};
  const double expected = at::cat({whole, replicated}).norm().item<double>();
  EXPECT_NEAR(clip_gradients(parameters, gradients, 1.0, mesh), expected, 1e-9);
  EXPECT_NEAR(gradients[1][0].item<double>(), 3.0 / expected, 1e-12);
}

TEST(Together, GathersTextsOfAnyLength) {
  const std::vector<std::string> texts =
      gather_text(std::string(static_cast<size_t>(3 * world().rank()), 'x'), world());
  ASSERT_EQ(static_cast<int>(texts.size()), world().size());
  for (size_t rank = 0; rank < texts.size(); ++rank) EXPECT_EQ(texts[rank], std::string(3 * rank, 'x'));
}

TEST(Together, AFaultOfOneRankIsEveryRanks) {
  const int last = world().size() - 1;
  try {
    on_all_ranks(world(), [&] {
      if (world().rank() == last) throw BadInput(std::vector<Fault>{{"a", "first"}, {"b", "second"}});
    });
    FAIL() << "nothing was thrown";
  } catch (const BadInput& fault) {
    ASSERT_EQ(fault.faults().size(), 2u);
    EXPECT_EQ(fault.faults()[1].what, "second");
  }
  EXPECT_NO_THROW(on_all_ranks(world(), [] {}));
}

}  // namespace
}  // namespace flashmorph
