#include "distributed/health/watchdog.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "core/base/clock.h"
#include "core/base/endings.h"
#include "tests/support/temporary_folder.h"

// The watchdog's thread and the rank's at the same time: where a lock is missing, tests/sanitize.sh tsan sees it here.

namespace flashmorph {
namespace {

using testing::HasSubstr;

constexpr double kShort = 0.2;  // seconds; a tenth of it is between two looks

struct Ended {
  int code;
};

TEST(Watchdog, LooksWhilePhasesComeAndGo) {
  const test::TemporaryFolder folder;
  const auto world = single_communicator("world");
  std::atomic<bool> has_ended = false;
  {
    Watchdog watchdog({.load = kShort}, *world, {"host"}, [&](int) { has_ended = true; });
    at::Tensor values = at::ones({3});
    const auto work = [&] {
      for (int call = 0; call < 100; ++call) world->all_reduce(values, Reduction::sum);
    };
    int64_t step = 0;
    for (const Stopwatch watch; watch.seconds() < 2.0 * kShort;) {
      if (++step % 2 == 0) watchdog.meet_in(folder.path());
      work();
      const Phase around(watchdog, Work::evaluate, "align");
      work();
      const Phase inside(watchdog, Work::step, "align", step);
      work();
    }
  }
  EXPECT_FALSE(has_ended) << "none of them was overdue";
}

TEST(Watchdog, SpeaksForARankThatIsOverdueAndMayStillGoOn) {
  const test::TemporaryFolder folder;
  const auto world = single_communicator("world");
  std::atomic<int> code = 0;
  testing::internal::CaptureStderr();
  {
    Watchdog watchdog({.save = kShort}, *world, {"host"}, [&](int with) { code = with; });
    watchdog.meet_in(folder.path());
    const Phase late(watchdog, Work::save, "align");
    while (!std::filesystem::exists(folder.path() / "told")) std::this_thread::yield();
    const Phase after(watchdog, Work::step, "align", 3);
  }
  EXPECT_EQ(code, kHung);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("rank 0 on host: align, save: not done after"));
}

int code_of_giving_up(const std::exception& reason) {
  const auto world = single_communicator("world");
  Watchdog watchdog({.load = kShort}, *world, {"host"}, [](int code) { throw Ended{code}; });
  const Phase step(watchdog, Work::step, "select", 7);
  try {
    watchdog.give_up(reason);
  } catch (const Ended& ended) {
    return ended.code;
  }
}

TEST(Watchdog, ThatIsToldToGiveUpSaysWhy) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(code_of_giving_up(std::runtime_error("the disk is full")), kFailed);
  EXPECT_EQ(code_of_giving_up(CommunicationError("a peer is gone")), kFailed);
  EXPECT_EQ(code_of_giving_up(NotDoneInTime("not done within 8 s")), kHung);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("rank 0 on host: select, step 7: the disk is full"));
  EXPECT_THAT(said, HasSubstr("rank 0 on host: select, step 7: not done within 8 s"));
}

TEST(Watchdog, SaysOfAFullCardWhatWouldNeedLess) {
  testing::internal::CaptureStderr();
  const c10::OutOfMemoryError full(
      {__func__, __FILE__, __LINE__},
      "CUDA out of memory. Tried to allocate 32.00 MiB. GPU 1 has a total capacity of 139.80 GiB of which 104.54 MiB "
      "is free. Process 6422 has 2.01 GiB memory in use. Including non-PyTorch memory, this process has 2.89 GiB "
      "memory in use. Process 7218 has 680.00 MiB memory in use. Of the allocated memory 298.92 MiB is allocated by "
      "PyTorch, and "
      "3.08 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting");
  EXPECT_EQ(code_of_giving_up(full), kFailed);
  EXPECT_THAT(
      testing::internal::GetCapturedStderr(),
      HasSubstr("select, step 7: CUDA out of memory. Tried to allocate 32.00 MiB. GPU 1 has a total capacity of "
                "139.80 GiB of which 104.54 MiB is free. Including non-PyTorch memory, this process has 2.89 "
                "GiB memory in use. Of the allocated memory 298.92 MiB is allocated by PyTorch, and 3.08 MiB is "
                "reserved by PyTorch but unallocated. Fewer micro_batch_tokens"));
}

TEST(CallLog, MayBeReadWhileCallsGoOn) {
  CallLog log;
  const size_t data = log.add_group("data", {0});
  std::atomic<bool> is_done = false;
  std::thread reader([&] {
    while (!is_done.load(std::memory_order_relaxed)) {
      const std::vector<CallRecord> calls = log.last();
      for (size_t i = 1; i < calls.size(); ++i) EXPECT_EQ(calls[i].step, calls[i - 1].step + 1);
      for (const CallGroup& group : log.groups()) EXPECT_EQ(group.members, std::vector<int>{0});
      if (const auto call = log.on_card()) {
        EXPECT_STREQ(call->operation, "all_reduce");
      }
      for (int look = 0; look < 20; ++look) EXPECT_GE(log.seconds_inside(), 0.0);
    }
  });
  const at::Tensor values = at::ones({3});
  int64_t step = 0, ticket = 0;
  for (const Stopwatch watch; watch.seconds() < 2.0 * kShort;) {
    log.at_step(++step);
    log.begin(data, "all_reduce", kAll, &values);
    if (step % 3 == 0) ticket = log.goes_on_on_card();
    log.end();
    if (step % 3 == 2) log.done_on_card(ticket);
    if (step % 200 == 0 && step < 50000) log.add_group("more", {0});
  }
  is_done.store(true, std::memory_order_relaxed);
  reader.join();
  EXPECT_EQ(log.last().back().step, step);
}

}  // namespace
}  // namespace flashmorph
