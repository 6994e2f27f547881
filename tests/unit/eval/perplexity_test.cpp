#include "core/eval/perplexity.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "core/base/bad_input.h"
#include "core/eval/choices.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"
#include "tests/unit/eval/models.h"

namespace flashmorph {
namespace {

using test::TemporaryFolder;

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

TEST(LikelihoodByPlace, IsByWhereATokenStandsInItsDocument) {
  const MorphableModel model = test::small_random_model();
  const std::vector<int32_t> tokens = random_text(18);
  const TokenList text(tokens, {0, 11});
  const std::vector<LikelihoodSum> sums =
      likelihood_by_place(model, test::full_linear_full(), text.all(), 18, 0, 1, {0, 1, 4, 8, 18});
  std::vector<LikelihoodSum> expected(4);
  for (const auto& [first, last] : {std::pair{0, 11}, {11, 18}}) {
    const std::vector<int64_t> own(tokens.begin() + first, tokens.begin() + last);
    const at::Tensor log_probability = test::logits_of(model, test::full_linear_full(), own).log_softmax(-1);
    for (size_t place = 1; place < own.size(); ++place)
      expected[place < 4   ? 1
               : place < 8 ? 2
                           : 3] += {-log_probability[static_cast<int64_t>(place) - 1][own[place]].item<double>(), 1};
  }
  for (size_t b = 0; b < 4; ++b) {
    EXPECT_EQ(sums[b].tokens, expected[b].tokens) << b;
    EXPECT_NEAR(sums[b].negative_log, expected[b].negative_log, 1e-9) << b;
  }
}

// Whole sequences of context and choice, one at a time.
TEST(Choices, LikelihoodIsTheSumOverTheChoicesTokens) {
  const MorphableModel teacher = test::passkey_teacher();
  const Tokenizer tokenizer = Tokenizer::open("tests/data/passkey-teacher/tokenizer.json");
  const ChoiceItem item{.context = "First Citizen:\nSpeak,", .choices = {" speak.", " the gods know all", " x"}};
  const std::vector<double> found = choice_likelihoods(teacher, test::all_full(teacher), tokenizer, item);
  const size_t context = tokenizer.encode(item.context).size();
  for (size_t c = 0; c < item.choices.size(); ++c) {
    const std::vector<int32_t> whole = tokenizer.encode(item.context + item.choices[c]);
    const at::Tensor log_probability =
        test::logits_of(teacher, test::all_full(teacher), {whole.begin(), whole.end()}).log_softmax(-1);
    double expected = 0.0;
    for (size_t t = context; t < whole.size(); ++t)
      expected += log_probability[static_cast<int64_t>(t) - 1][whole[t]].item<double>();
    EXPECT_NEAR(found[c], expected, 1e-4) << c;
  }
}

TEST(Choices, TheGreatestWinsAsItIsOrByBytes) {
  const ChoiceItem item{.context = "?", .choices = {" a", " a long one"}, .answer = 1};
  EXPECT_FALSE(verdict(item, {-2.0, -6.0}).right);
  EXPECT_TRUE(verdict(item, {-2.0, -6.0}).right_by_length);  // -1 and -0.55 a byte
  EXPECT_FALSE(verdict({.context = "?", .choices = {" a", " b"}, .answer = 1}, {-1.0, -1.0}).right);
}

TEST(Choices, AFileIsReadOrItsLineNamed) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "choices.jsonl";
  const auto read = [&](const std::string& lines) {
    std::ofstream(file) << lines;
    return read_choices(file);
  };
  const std::string good = R"({"context": "a", "choices": [" b", " c"], "answer": 1, "more": {}})";
  EXPECT_EQ(read(good + "\n\n" + R"({"context": "a", "choices": [" b", " c"], "answer": " c"})").at(1).answer, 1);
  for (const char* bad :
       {"{", "[]", R"({"choices": ["b", "c"], "answer": 0})", R"({"context": "", "choices": ["b", "c"], "answer": 0})",
        R"({"context": "a", "choices": ["b"], "answer": 0})", R"({"context": "a", "choices": ["b", 3], "answer": 0})",
        R"({"context": "a", "choices": ["b", "c"], "answer": 2})",
        R"({"context": "a", "choices": ["b", "c"], "answer": "d"})", R"({"context": "a", "choices": ["b", "c"]})"}) {
    try {
      read(good + "\n" + bad);
      ADD_FAILURE() << bad << " was accepted";
    } catch (const BadInput& fault) {
      EXPECT_THAT(fault.what(), testing::HasSubstr("choices.jsonl: line 2")) << bad;
    }
  }
  EXPECT_THROW(read(""), BadInput);
  EXPECT_THROW(read_choices(folder.path() / "none"), BadInput);
}

TEST(TextLikelihood, TeachersPerplexityIsThatOfItsDescription) {
  const MorphableModel teacher = test::passkey_teacher();
  const LikelihoodSum sum = text_likelihood(teacher, test::all_full(teacher), test::plays().held_out(), 512, 0, 16);
  EXPECT_EQ(sum.tokens, 16 * 511);
  const double perplexity = std::exp(sum.negative_log / static_cast<double>(sum.tokens));
  EXPECT_GT(perplexity, 30.0);
  EXPECT_LT(perplexity, 50.0);
}

}  // namespace
}  // namespace flashmorph
