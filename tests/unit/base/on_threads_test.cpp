#include "core/base/on_threads.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace flashmorph {
namespace {

TEST(OnThreads, DoesEachOnceOnAnyNumberOfThem) {
  for (const size_t count : {0, 1, 5, 100})
    for (const size_t threads : {0, 1, 3, 200}) {
      std::vector<std::atomic<int>> done(count);
      on_threads(count, threads, [&](size_t i) { ++done[i]; });
      for (const std::atomic<int>& times : done) EXPECT_EQ(times, 1);
    }
}

TEST(OnThreads, ThrowsWhatOneHasThrown) {
  std::vector<std::atomic<int>> begun(20);
  EXPECT_THROW(on_threads(20, 3,
                          [&](size_t i) {
                            ++begun[i];
                            if (i == 7) throw std::runtime_error("the seventh");
                          }),
               std::runtime_error);
  for (const std::atomic<int>& times : begun) EXPECT_LE(times, 1);
}

}  // namespace
}  // namespace flashmorph
