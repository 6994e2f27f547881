#include "core/base/clock.h"

#include <gtest/gtest.h>

namespace flashmorph {
namespace {

TEST(Stopwatch, GoesOnBehindWhatWasBefore) {
  const Stopwatch watch, later(1000.0);
  const double first = watch.seconds(), second = watch.seconds();
  EXPECT_GE(first, 0.0);
  EXPECT_GE(second, first);
  EXPECT_GE(later.seconds(), 1000.0);
}

TEST(Stopwatch, StartsAgainWhenAssignedAnew) {
  Stopwatch watch(1000.0);
  const double before = watch.seconds();
  watch = Stopwatch();
  EXPECT_LT(watch.seconds(), before);
}

}  // namespace
}  // namespace flashmorph
