#include "distributed/run/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::filesystem::path& folder, const LockHolder& self) {
  try {
    const RunLock lock(folder, self);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

const LockHolder kSelf{"here", 12, "2026-01-02T03:04:05Z", "7"};

TEST(RunLock, IsOneProcessesAndGoesWithIt) {
  const test::TemporaryFolder folder;
  const std::filesystem::path run = folder.path() / "run";
  {
    const RunLock lock(run, kSelf);
    EXPECT_EQ(lock.taken_over(), "");
    EXPECT_THAT(refusal(run, kSelf),
                HasSubstr("is in use by process 12 on host here (Slurm job 7) since 2026-01-02T03:04:05Z"));
    EXPECT_THAT(refusal(run, {"other", 3, "now"}), HasSubstr("is in use by process 12 on host here")) << "whoever asks";
    EXPECT_TRUE(std::filesystem::exists(run / "lock")) << "a refused one leaves it";
  }
  EXPECT_FALSE(std::filesystem::exists(run / "lock"));
  EXPECT_EQ(refusal(run, kSelf), "none");
}

TEST(RunLock, OfAKilledProcessIsExplainedAndTakenOver) {
  const test::TemporaryFolder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const RunLock lock(folder.path());
    if (write(ready[1], "x", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_THAT(refusal(folder.path(), LockHolder::this_process()),
              HasSubstr("is in use by process " + std::to_string(child)));
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  const RunLock lock(folder.path());
  EXPECT_THAT(lock.taken_over(), HasSubstr("the lock of process " + std::to_string(child)));
  EXPECT_THAT(lock.taken_over(), HasSubstr("was left behind"));
}

TEST(RunLock, OfAnotherHostCountsUnlessItIsTheSameJob) {
  const test::TemporaryFolder folder;
  const auto left = [&](const std::string& words) { std::ofstream(folder.path() / "lock") << words; };
  left("there 99 2026-01-01T00:00:00Z 6\n");
  EXPECT_THAT(refusal(folder.path(), kSelf), HasSubstr("left locked by process 99 on host there (Slurm job 6)"));
  EXPECT_THAT(refusal(folder.path(), kSelf), HasSubstr("when it is gone, remove " + (folder.path() / "lock").string()));
  left("there 99 2026-01-01T00:00:00Z -\n");
  EXPECT_THAT(refusal(folder.path(), kSelf), HasSubstr("left locked by process 99"));
  left("there 99 2026-01-01T00:00:00Z 7\n");
  const RunLock lock(folder.path(), kSelf);
  EXPECT_THAT(lock.taken_over(), HasSubstr("process 99 on host there"));
}

}  // namespace
}  // namespace flashmorph
