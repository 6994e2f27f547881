#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <functional>

#include "core/base/clock.h"
#include "distributed/communication/communicator.h"
#include "distributed/health/stop_signal.h"
#include "tests/mpi/world.h"

// What a group promises for any number of ranks, its failures, and that a group of one keeps the same promises.

namespace flashmorph {
namespace {

using test::world;
using testing::HasSubstr;

std::string failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const CommunicationError& error) {
    return error.what();
  }
  return "";
}

TEST(Collectives, EveryDtypeReducesAndGathersExactly) {
  const int64_t ranks = world().size();
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kLong, at::kInt, at::kByte}) {
    at::Tensor sum = at::full({2, 3}, world().rank() + 1, dtype), largest = sum.clone();
    world().all_reduce(sum, Reduction::sum);
    world().all_reduce(largest, Reduction::max);
    EXPECT_TRUE(sum.equal(at::full({2, 3}, ranks * (ranks + 1) / 2, dtype))) << dtype;
    EXPECT_TRUE(largest.equal(at::full({2, 3}, ranks, dtype))) << dtype;
    const at::Tensor all = world().all_gather(at::full({2, 3}, world().rank(), dtype));
    EXPECT_EQ(all.scalar_type(), dtype);
    EXPECT_TRUE(all.equal(at::arange(ranks).to(dtype).view({-1, 1, 1}).expand({ranks, 2, 3}))) << dtype;
  }
}

TEST(Collectives, EachRankGetsItsSlotOfTheSum) {
  const int64_t ranks = world().size(), mine = world().rank() + 1;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kInt, at::kByte}) {
    const at::Tensor slots = (at::arange(1, ranks + 1) * mine).to(dtype).view({-1, 1, 1}).repeat({1, 2, 3}),
                     before = slots.clone();
    const at::Tensor own = world().reduce_scatter(slots);
    EXPECT_EQ(own.scalar_type(), dtype);
    EXPECT_TRUE(own.equal(at::full({2, 3}, mine * ranks * (ranks + 1) / 2, dtype))) << dtype;
    EXPECT_TRUE(slots.equal(before)) << dtype << ": the tensor handed in was changed";
  }
  const at::Tensor parts = at::full({ranks, 2}, 1.0 / 512, at::kBFloat16);
  parts[world().rank()].fill_(1.0);  // 1 + 2^-9 rounds to 1: the sum must be wider
  EXPECT_EQ(world().reduce_scatter(parts)[1].item<float>(),
            at::full({}, 1.0 + static_cast<double>(ranks - 1) / 512).to(at::kBFloat16).item<float>());
}

TEST(Collectives, SlotsMustBeOneARank) {
  EXPECT_THROW(world().reduce_scatter(at::zeros({world().size() + 1, 2})), c10::Error);
  EXPECT_THROW(world().reduce_scatter(at::zeros({})), c10::Error);
}

TEST(Collectives, TrueAnywhereIsTrueEverywhere) {
  for (const Reduction reduction : {Reduction::sum, Reduction::max}) {
    at::Tensor flags = at::zeros({3}, at::kBool);
    if (world().rank() == world().size() - 1) flags[1] = true;
    world().all_reduce(flags, reduction);
    EXPECT_TRUE(flags.equal(at::tensor({0, 1, 0}).to(at::kBool)));
  }
}

// MPI picks its algorithm by size, so each size is a case of its own.
TEST(Collectives, FloatsReduceToTheSameBitsOnEveryRank) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble})
    for (const int64_t count : {1, 7, 1000, 20011, 300007, 3000017}) {
      at::Generator generator = at::detail::createCPUGenerator(17 + world().rank());
      at::Tensor sum = at::randn({count}, generator, at::TensorOptions(dtype));
      world().all_reduce(sum, Reduction::sum);
      at::Tensor first = sum.clone();
      world().broadcast(first, 0);
      EXPECT_TRUE(first.equal(sum)) << count << " of " << dtype;
    }
}

TEST(Collectives, TensorsLargerThanOneCallAreWhole) {
  const int64_t count = (int64_t{1} << 26) + 13;  // a byte each, just past one call's share
  const int last = world().size() - 1;
  at::Tensor bytes = world().rank() == last ? at::arange(count, at::kByte) : at::zeros({count}, at::kByte);
  world().broadcast(bytes, last);
  EXPECT_TRUE(bytes.equal(at::arange(count, at::kByte)));
  bytes.fill_(1);
  world().all_reduce(bytes, Reduction::sum);
  EXPECT_TRUE(bytes.eq(world().size()).all().item<bool>());
}

TEST(Collectives, ATensorWithoutElementsPasses) {
  at::Tensor nothing = at::zeros({0, 4});
  world().all_reduce(nothing, Reduction::sum);
  world().broadcast(nothing, 0);
  EXPECT_EQ(world().all_gather(nothing).sizes(), at::IntArrayRef({world().size(), 0, 4}));
  EXPECT_EQ(world().reduce_scatter(at::zeros({world().size(), 0, 4})).sizes(), at::IntArrayRef({0, 4}));
}

TEST(Collectives, BinaryTextComesWholeFromAnyRoot) {
  for (int root = 0; root < world().size(); ++root) {
    const std::string text = std::string("line\0\xff\n", 7) + std::to_string(root);
    EXPECT_EQ(world().broadcast_text(world().rank() == root ? text : "other", root), text);
  }
}

TEST(Split, GroupsByColourOrdersByKeyAndKeepsTheirTrafficApart) {
  const int rank = world().rank(), size = world().size(), color = rank % 2;
  const auto group = world().split(color, -rank, "half");
  EXPECT_EQ(group->name(), "half");
  EXPECT_EQ(group->size(), (size + 1 - color) / 2);
  EXPECT_EQ(group->rank(), group->size() - 1 - rank / 2);
  const at::Tensor members = group->all_gather(at::full({}, int64_t{rank}, at::kLong));
  for (int64_t place = 0; place < group->size(); ++place)
    EXPECT_EQ(members[place].item<int64_t>(), (group->size() - 1 - place) * 2 + color);
  EXPECT_EQ(group->traffic().by_operation.size(), 1u);
}

TEST(Split, ManyGroupsComeAndGo) {
  for (int round = 0; round < 500; ++round) {
    const auto everyone = world().split(0, world().rank(), "everyone");
    at::Tensor one = at::ones({1}, at::kLong);
    everyone->all_reduce(one, Reduction::sum);
    ASSERT_EQ(one.item<int64_t>(), world().size());
  }
}

TEST(Failures, NameTheCallTheRankTheGroupAndTheReason) {
  const auto group = world().split(0, world().rank(), "data");
  const std::string who = " failed on rank " + std::to_string(world().rank()) + " of " +
                          std::to_string(world().size()) + " in group 'data': ";
  const int nobody = world().size();
  at::Tensor values = at::zeros({2});
  EXPECT_THAT(failure_of([&] { group->send(values, nobody); }),
              testing::AllOf(HasSubstr("MPI_Send" + who), HasSubstr("MPI_ERR_RANK")));
  EXPECT_THAT(failure_of([&] { group->receive(values, nobody); }), HasSubstr("MPI_Recv" + who));
  EXPECT_THAT(failure_of([&] { group->broadcast(values, nobody); }), HasSubstr("MPI_Bcast" + who));
}

TEST(Failures, AMessageTooLongForTheReceiverIsOne) {
  const int rank = world().rank();
  const bool paired = (rank ^ 1) < world().size();
  if (paired && rank % 2 == 0) world().send(at::ones({8}), rank + 1);
  if (paired && rank % 2 == 1) {
    at::Tensor short_of_it = at::zeros({4});
    EXPECT_THAT(failure_of([&] { world().receive(short_of_it, rank - 1); }), HasSubstr("MPI_ERR_TRUNCATE"));
  }
  EXPECT_EQ(world().broadcast_text("still alive", 0), "still alive");
}

TEST(Failures, OtherTensorsAreRefusedBeforeAnythingIsSent) {
  at::Tensor transposed = at::zeros({2, 3}).t(), half = at::zeros({2}, at::kHalf),
             elsewhere = at::empty({2}, at::kMeta);
  EXPECT_THROW(world().all_reduce(transposed, Reduction::sum), c10::Error);
  EXPECT_THROW(world().all_gather(transposed), c10::Error);
  EXPECT_THROW(world().reduce_scatter(at::zeros({world().size(), 2, 3}).transpose(1, 2)), c10::Error);
  EXPECT_THROW(world().all_reduce(half, Reduction::sum), c10::Error);
  EXPECT_THROW(world().broadcast(elsewhere, 0), c10::Error);
}

// One story told to both kinds of group of one.
struct Story {
  at::Tensor sum, largest, sent, gathered, slot;
  std::string text;
  std::map<std::string, std::pair<int64_t, int64_t>> traffic;
};

Story tell(Communicator& group) {
  Story story{at::arange(6).view({2, 3}), at::tensor({1.5, -0.0}), at::tensor({3.0f}), {}, {}, {}, {}};
  group.all_reduce(story.sum, Reduction::sum);
  group.all_reduce(story.largest, Reduction::max);
  group.broadcast(story.sent, 0);
  story.gathered = group.all_gather(story.sum);
  story.slot = group.reduce_scatter(story.gathered);
  story.text = group.broadcast_text("text", 0);
  group.barrier();
  for (const auto& [operation, entry] : group.traffic().by_operation)
    story.traffic[operation] = {entry.calls, entry.bytes};
  return story;
}

TEST(GroupOfOne, BehavesAsMpiOfOne) {
  const auto mpi = world().split(world().rank(), 0, "alone"), single = single_communicator("alone");
  for (Communicator* group : {mpi.get(), single.get()}) {
    EXPECT_EQ(group->rank(), 0);
    EXPECT_EQ(group->size(), 1);
    EXPECT_EQ(group->name(), "alone");
    at::Tensor values = at::zeros({2}), transposed = at::zeros({2, 3}).t();
    EXPECT_NE(failure_of([&] { group->broadcast(values, 1); }), "");
    EXPECT_NE(failure_of([&] { group->broadcast_text("", 1); }), "");
    EXPECT_NE(failure_of([&] { group->send(values, 1); }), "");
    EXPECT_NE(failure_of([&] { group->receive(values, 1); }), "");
    EXPECT_THROW(group->all_reduce(transposed, Reduction::sum), c10::Error);
    EXPECT_EQ(group->split(3, 0, "part")->size(), 1);
  }
}

TEST(GroupOfOne, TellsTheStoryOfMpiOfOne) {
  const auto mpi = world().split(world().rank(), 0, "alone"), single = single_communicator("alone");
  const Story actual = tell(*single), expected = tell(*mpi);
  EXPECT_TRUE(actual.sum.equal(expected.sum));
  EXPECT_TRUE(actual.largest.equal(expected.largest));
  EXPECT_TRUE(actual.sent.equal(expected.sent));
  EXPECT_TRUE(actual.gathered.equal(expected.gathered));
  EXPECT_EQ(actual.gathered.sizes(), expected.gathered.sizes());
  EXPECT_TRUE(actual.slot.equal(expected.slot));
  EXPECT_EQ(actual.text, expected.text);
  EXPECT_EQ(actual.traffic, expected.traffic);
}

TEST(StopSignal, OneRanksSignalStopsEveryRank) {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    StopSignal stop;
    EXPECT_EQ(stop.agreed(world()), StopReason::none);
    if (world().rank() == world().size() - 1) {
      std::raise(signal);
      for (const int second : {SIGINT, SIGTERM, SIGUSR1})
        EXPECT_EQ(std::signal(second, SIG_DFL), SIG_DFL) << "a second one must end the process";
    }
    EXPECT_EQ(stop.agreed(world()), StopReason::signal);
    EXPECT_EQ(stop.agreed(world()), StopReason::signal);
  }
}

TEST(StopSignal, TimeIsOverOnEveryRankWhenItIsOnOne) {
  const bool is_last = world().rank() == world().size() - 1;
  const double now = unix_time();
  StopSignal limited(is_last ? 1e-9 : 0.0);
  EXPECT_EQ(limited.agreed(world()), StopReason::time_limit);
  StopSignal in_a_long_job(1e9, now + 1e6);
  EXPECT_EQ(in_a_long_job.agreed(world()), StopReason::none);
  EXPECT_EQ(in_a_long_job.agreed(world(), /*seconds_to_save=*/1e6), StopReason::slurm) << "no time left to save";
  StopSignal in_an_ending_job(0.0, is_last ? now : 0.0);
  EXPECT_EQ(in_an_ending_job.agreed(world()), StopReason::slurm);
}

}  // namespace
}  // namespace flashmorph
