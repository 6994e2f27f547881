#include "core/ops/softmax_attention.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

struct Heads {
  int64_t queries, keys, dim;
};

at::Tensor offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return at::tensor(offsets, at::kLong);
}

std::vector<at::Tensor> inputs(int64_t rows, int64_t tokens, const Heads& heads, at::ScalarType type) {
  const auto random = [&](int64_t count, uint64_t seed) {
    return at::randn({rows, tokens, count, heads.dim}, at::detail::createCPUGenerator(seed), at::kDouble).to(type);
  };
  return {random(heads.queries, 1), random(heads.keys, 2), random(heads.keys, 3), random(heads.queries, 4)};
}

// One document after the other, each by its map of probabilities.
at::Tensor definition(const std::vector<at::Tensor>& x, const at::Tensor& documents) {
  std::vector<at::Tensor> outputs;
  const int64_t groups = x[0].size(2) / x[1].size(2), *offset = documents.const_data_ptr<int64_t>();
  for (int64_t d = 0; d + 1 < documents.size(0); ++d) {
    const auto own = [&](size_t i) { return x[i].narrow(1, offset[d], offset[d + 1] - offset[d]); };
    const at::Tensor q = own(0), k = own(1).repeat_interleave(groups, 2), v = own(2).repeat_interleave(groups, 2);
    const at::Tensor scores = at::einsum("bihk,bjhk->bhij", {q, k}) / std::sqrt(static_cast<double>(q.size(3)));
    const at::Tensor hidden = at::ones({q.size(1), q.size(1)}, at::kBool).triu(1);
    const at::Tensor seen = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1);
    outputs.push_back(at::einsum("bhij,bjhk->bihk", {seen, v}));
  }
  return at::cat(outputs, 1);
}

void expect_definition(const std::vector<int64_t>& lengths, const Heads& heads, at::ScalarType type, double tolerance) {
  const at::Tensor documents = offsets_of(lengths);
  std::vector<at::Tensor> fast = inputs(1, documents[-1].item<int64_t>(), heads, type), exact;
  for (const at::Tensor& x : fast) exact.push_back(x.to(at::kDouble).clone());
  for (size_t i = 0; i < 3; ++i) fast[i].set_requires_grad(true), exact[i].set_requires_grad(true);
  const at::Tensor actual = softmax_attention(fast[0], fast[1], fast[2], documents, documents.to(at::kInt));
  const at::Tensor expected = definition(exact, documents);
  EXPECT_EQ(actual.scalar_type(), type);
  EXPECT_EQ(actual.sizes(), expected.sizes());
  EXPECT_LT(relative_error(expected, actual), tolerance);
  actual.backward(fast[3]);
  expected.backward(exact[3]);
  for (size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(exact[i].grad(), fast[i].grad()), tolerance) << "input " << i;
}

class Documents : public testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(Documents, AttendApartInEveryDtype) {
  for (const Heads heads : {Heads{4, 4, 8}, Heads{6, 2, 5}}) {
    expect_definition(GetParam(), heads, at::kDouble, 1e-12);
    expect_definition(GetParam(), heads, at::kFloat, 1e-5);
    expect_definition(GetParam(), heads, at::kBFloat16, 1e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(SoftmaxAttention, Documents,
                         testing::Values(std::vector<int64_t>{1}, std::vector<int64_t>{23},
                                         std::vector<int64_t>{16, 16, 16}, std::vector<int64_t>{16, 3, 13, 16},
                                         std::vector<int64_t>{1, 1, 40, 2, 37, 1, 39, 33},
                                         std::vector<int64_t>{64, 130, 63, 65, 1, 128, 129}));

// Views of one joined projection, as a layer has them; rows that are no documents.
TEST(SoftmaxAttention, OfABatchOfRowsIsThatOfEachRow) {
  constexpr int64_t kRows = 3, kDim = 24;
  for (const int64_t tokens : {1, 20, 64, 150})
    for (const auto& [type, tolerance] : {std::pair(at::kDouble, 1e-12), {at::kFloat, 1e-5}}) {
      const at::Tensor joined =
          at::randn({kRows, tokens, 8, kDim}, at::detail::createCPUGenerator(1), at::kDouble).to(type);
      const at::Tensor leaf = joined.clone().set_requires_grad(true), exact = joined.to(at::kDouble).clone();
      exact.set_requires_grad(true);
      const at::Tensor upstream =
          at::randn({kRows, 4, tokens, kDim}, at::detail::createCPUGenerator(2), at::kDouble).transpose(1, 2);
      const at::Tensor actual = softmax_attention(leaf.narrow(2, 0, 4), leaf.narrow(2, 4, 2), leaf.narrow(2, 6, 2));
      std::vector<at::Tensor> rows;
      for (int64_t b = 0; b < kRows; ++b) {
        const at::Tensor row = exact.narrow(0, b, 1);
        rows.push_back(
            definition({row.narrow(2, 0, 4), row.narrow(2, 4, 2), row.narrow(2, 6, 2)}, offsets_of({tokens})));
      }
      const at::Tensor expected = at::cat(rows);
      EXPECT_LT(relative_error(expected, actual), tolerance) << tokens;
      actual.backward(upstream.to(type));
      expected.backward(upstream);
      EXPECT_LT(relative_error(exact.grad(), leaf.grad()), tolerance) << tokens;
    }
}

// Exactly: whatever a later token holds. What is not a number stays none.
TEST(SoftmaxAttention, SeesNothingOfLaterTokens) {
  constexpr int64_t kTokens = 100, kFirst = 70;
  const auto x = inputs(1, kTokens, {2, 1, 16}, at::kFloat);
  const at::Tensor before = softmax_attention(x[0], x[1], x[2]);
  x[1].narrow(1, kFirst, kTokens - kFirst).fill_(1e30);
  x[2].narrow(1, kFirst, kTokens - kFirst).mul_(-3);
  EXPECT_TRUE(at::equal(before.narrow(1, 0, kFirst), softmax_attention(x[0], x[1], x[2]).narrow(1, 0, kFirst)));
  x[0].select(1, 3).fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor after = softmax_attention(x[0], x[1], x[2]);
  EXPECT_TRUE(after.select(1, 3).isnan().all().item<bool>());
  EXPECT_TRUE(at::equal(before.narrow(1, 4, kFirst - 4), after.narrow(1, 4, kFirst - 4)));
}

TEST(SoftmaxAttention, CallsDoNotGrowWithTheDocuments) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 200; ++i) lengths.push_back(1 + (i * 37) % 128);
  const at::Tensor documents = offsets_of(lengths);
  const auto x = inputs(1, documents[-1].item<int64_t>(), {2, 1, 4}, at::kDouble);
  static int calls = 0;
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& call) -> std::unique_ptr<at::ObserverContext> {
        calls += std::strcmp(call.name(), "aten::scaled_dot_product_attention") == 0 ? 1 : 0;
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  softmax_attention(x[0], x[1], x[2], documents, documents.to(at::kInt));
  at::removeCallback(handle);
  EXPECT_GE(calls, 1);
  EXPECT_LE(calls, 4 * 8);  // four an octave, of lengths up to 2^7
}

TEST(SoftmaxAttention, RefusesWhatDoesNotFit) {
  const auto x = inputs(1, 6, {4, 2, 8}, at::kFloat);
  const at::Tensor good = offsets_of({2, 4}), short_of = offsets_of({2, 3});
  const auto with = [&](const at::Tensor& documents) {
    return softmax_attention(x[0], x[1], x[2], documents, documents.to(at::kInt));
  };
  EXPECT_NO_THROW(with(good));
  EXPECT_THROW(with(short_of), c10::Error);
  EXPECT_THROW(with(good.flip(0)), c10::Error);
  EXPECT_THROW(softmax_attention(x[0], x[1], x[2], good), c10::Error) << "not on the device";
  EXPECT_THROW(softmax_attention(x[0], x[1].narrow(1, 0, 3), x[2].narrow(1, 0, 3)), c10::Error) << "fewer keys";
  EXPECT_THROW(softmax_attention(x[0], x[1].narrow(3, 0, 4), x[2]), c10::Error);
}

}  // namespace
}  // namespace flashmorph
