#include "core/eval/perplexity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/data/plays.h"
#include "tests/unit/eval/models.h"

namespace flashmorph {
namespace {

constexpr int64_t kLength = 11;

std::vector<int32_t> random_text(int64_t length) {
  KeyedRandom random{8};
  std::vector<int32_t> text;
  for (int64_t i = 0; i < length; ++i) text.push_back(static_cast<int32_t>(random.below(64)));
  return text;
}

TEST(TextLikelihood, IsMinusTheLogOfEachNextTokensProbability) {
  const MorphableModel model = test::small_random_model();
  const std::vector<int32_t> text = random_text(4 * kLength + 5);
  const TokenList list(text);
  for (const Routes& routes : {test::all_full(model), test::full_linear_full()}) {
    double expected = 0.0;
    for (int64_t window = 1; window < 3; ++window) {
      const std::vector<int64_t> tokens(text.begin() + window * kLength, text.begin() + (window + 1) * kLength);
      const at::Tensor log_probability = test::logits_of(model, routes, tokens).log_softmax(-1);
      for (int64_t t = 0; t + 1 < kLength; ++t)
        expected -= log_probability[t][tokens[static_cast<size_t>(t) + 1]].item<double>();
    }
    const LikelihoodSum sum = text_likelihood(model, routes, list.all(), kLength, 1, 3);
    EXPECT_EQ(sum.tokens, 2 * (kLength - 1));
    EXPECT_NEAR(sum.negative_log / expected, 1.0, 1e-9);
  }
}

TEST(TextLikelihood, AddsUpOverWindows) {
  const MorphableModel model = test::small_random_model();
  const TokenList text(random_text(4 * kLength));
  const auto over = [&](int64_t first, int64_t last) {
    return text_likelihood(model, test::all_full(model), text.all(), kLength, first, last);
  };
  EXPECT_NEAR(over(0, 4).negative_log, over(0, 1).negative_log + over(1, 4).negative_log, 1e-9);
  EXPECT_EQ(over(0, 4).tokens, over(0, 1).tokens + over(1, 4).tokens);
  EXPECT_EQ(over(2, 2).tokens, 0);
  EXPECT_EQ(over(2, 2).negative_log, 0.0);
}

TEST(TextLikelihood, DocumentsInAWindowAreReadApart) {
  const MorphableModel model = test::small_random_model();
  const std::vector<int32_t> tokens = random_text(kLength + 7);
  const TokenList first({tokens.begin(), tokens.begin() + kLength}), second({tokens.begin() + kLength, tokens.end()}),
      both(tokens, {0, kLength});
  const auto whole = [&](const TokenList& text) {
    return text_likelihood(model, test::full_linear_full(), text.all(), static_cast<int64_t>(text.all().size()), 0, 1);
  };
  EXPECT_EQ(whole(both).tokens, kLength - 1 + 7 - 1);
  EXPECT_NEAR(whole(both).negative_log, whole(first).negative_log + whole(second).negative_log, 1e-9);
}

TEST(TextLikelihood, TeachersPerplexityIsThatOfItsDescription) {
  const MorphableModel teacher = test::passkey_teacher();
  const LikelihoodSum sum =
      text_likelihood(teacher, test::all_full(teacher), test::held_out(test::plays()), 512, 0, 16);
  EXPECT_EQ(sum.tokens, 16 * 511);
  const double perplexity = std::exp(sum.negative_log / static_cast<double>(sum.tokens));
  EXPECT_GT(perplexity, 30.0);
  EXPECT_LT(perplexity, 50.0);
}

}  // namespace
}  // namespace flashmorph
