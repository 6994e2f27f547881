#include "core/base/flat_map.h"

#include <gtest/gtest.h>

#include <unordered_map>

#include "core/base/random.h"

namespace flashmorph {
namespace {

TEST(FlatMap, HoldsWhatAnUnorderedMapHolds) {
  FlatMap<int> map;
  std::unordered_map<uint64_t, int> expected;
  EXPECT_EQ(map.find(0), nullptr);
  KeyedRandom random{1};
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t key = i % 2 ? random.below(5'000) : random.below(1u << 20) << 40;  // small ones, and high bits only
    map.insert_or_assign(key, i);
    expected[key] = i;
  }
  for (const auto& [key, value] : expected) {
    ASSERT_TRUE(map.contains(key)) << key;
    EXPECT_EQ(*map.find(key), value) << key;
  }
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t key = random.next() >> 1;
    EXPECT_EQ(map.contains(key), expected.contains(key)) << key;
  }
}

}  // namespace
}  // namespace flashmorph
