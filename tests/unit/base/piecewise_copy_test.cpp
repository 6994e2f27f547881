#include "core/base/piecewise_copy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace flashmorph {
namespace {

TEST(PiecewiseCopy, IsWholeInPiecesOfAnySize) {
  const std::vector<at::Tensor> tensors = {
      at::randn({37, 5}),  at::randn({5, 37}, at::kDouble).t(), at::randn({101, 1}), at::randn({1, 1}),
      at::randn({0, 3}),   at::arange(7).unsqueeze(1),          at::randn({9}),      at::randn({}),
      at::randn({4, 3, 2})};
  for (const int64_t piece : {1, 24, 100, 1 << 20})
    for (const size_t threads : {1, 3}) {
      const std::vector<at::Tensor> copies = copied_to_host(tensors, {.threads = threads, .piece = piece});
      ASSERT_EQ(copies.size(), tensors.size());
      for (size_t i = 0; i < tensors.size(); ++i) {
        EXPECT_TRUE(at::equal(copies[i], tensors[i])) << i;
        EXPECT_EQ(copies[i].scalar_type(), tensors[i].scalar_type());
        EXPECT_TRUE(copies[i].is_contiguous());
        EXPECT_FALSE(copies[i].is_alias_of(tensors[i])) << "what is trained goes on to change";
      }
    }
}

TEST(PiecewiseCopy, OfColumnsIntoAnotherDtypeRoundsAsOneCopy) {
  const at::Tensor from = at::randn({37, 12}).narrow(1, 3, 5);
  const at::Tensor to = at::empty({37, 5}, at::kBFloat16);
  copy_in_pieces({{from, to}}, {.threads = 3, .piece = 100});
  EXPECT_TRUE(at::equal(to, from.to(at::kBFloat16)));
}

}  // namespace
}  // namespace flashmorph
