#include "distributed/checkpoint/regions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <tuple>

namespace flashmorph {
namespace {

TEST(Regions, AFlatStretchIsItsRectanglesInOrder) {
  const at::Tensor all = at::arange(100, at::kLong).view({10, 10});
  const Rectangle whole{2, 3, 5, 4};  // rows 2-6, columns 3-6
  const at::Tensor flat = part_of(all, matrix_of({10, 10}), whole).flatten();
  for (int64_t first = 0; first <= 20; ++first)
    for (int64_t count = 0; first + count <= 20; ++count) {
      std::vector<at::Tensor> parts = {at::zeros({0}, at::kLong)};
      const std::vector<Rectangle> places = rectangles_of(whole, first, count);
      EXPECT_LE(places.size(), 3U) << first << " " << count;
      for (const Rectangle& place : places) parts.push_back(part_of(all, matrix_of({10, 10}), place).flatten());
      EXPECT_TRUE(at::cat(parts).equal(flat.narrow(0, first, count))) << first << " " << count;
    }
}

TEST(Regions, EveryShapeIsAMatrix) {
  EXPECT_EQ(matrix_of({}), (Rectangle{0, 0, 1, 1}));
  EXPECT_EQ(matrix_of({7}), (Rectangle{0, 0, 7, 1}));
  EXPECT_EQ(matrix_of({3, 5}), (Rectangle{0, 0, 3, 5}));
  EXPECT_EQ(matrix_of({3, 1, 4}), (Rectangle{0, 0, 3, 4}));
}

TEST(Regions, WhatTwoRectanglesShare) {
  EXPECT_EQ(intersection({0, 0, 4, 4}, {2, 3, 9, 9}), (Rectangle{2, 3, 2, 1}));
  EXPECT_EQ(intersection({0, 0, 4, 4}, {4, 0, 1, 4}).area(), 0);
  EXPECT_EQ(intersection({0, 0, 1, 4}, {5, 9, 1, 4}).area(), 0);
  EXPECT_TRUE(contains({0, 0, 4, 4}, {1, 1, 3, 3}));
  EXPECT_FALSE(contains({0, 0, 4, 4}, {1, 1, 3, 4}));
}

}  // namespace
}  // namespace flashmorph
