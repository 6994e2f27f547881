#include "core/data/passkeys.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <tuple>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"

// Samples are read back from their text, with none of the code that wrote them.

namespace flashmorph {
namespace {

using test::plays;
using test::task;
using test::tokenizer;

const std::vector<std::string> kOrdinals = {"first", "second",  "third",  "fourth", "fifth",
                                            "sixth", "seventh", "eighth", "ninth",  "tenth"};

struct Line {
  std::string ordinal;
  std::string words;
  size_t place;  // in the text
};

struct Reading {
  std::vector<Line> statements, questions;
  std::string background;
};

std::vector<Line> lines_like(const std::string& text, const std::string& pattern) {
  const std::regex line(pattern);
  std::vector<Line> lines;
  for (std::sregex_iterator found(text.begin(), text.end(), line), end; found != end; ++found)
    lines.push_back({found->str(1), found->str(2), static_cast<size_t>(found->position())});
  return lines;
}

// Fails unless the text is: background with whole statement lines, then questions, then the end of text.
Reading read(const std::string& text) {
  static const std::string statement =
      "Remember this sequence of words, it is the (\\w+) passkey to the vault:([ a-z]+)\n";
  static const std::string question = "\nWhat is the (\\w+) passkey to the vault\\?\nPasskey:([ a-z]+)\n";
  std::smatch parts;
  EXPECT_TRUE(std::regex_search(text, parts, std::regex("((?:" + question + ")+)<\\|endoftext\\|>$")));
  const std::string before = text.substr(0, static_cast<size_t>(parts.position()));
  Reading reading{lines_like(before, statement), lines_like(parts.str(1), question), {}};
  for (const Line& line : reading.statements)
    EXPECT_TRUE(line.place == 0 || before[line.place - 1] == '\n') << "a statement inside a line: " << text;
  reading.background = std::regex_replace(before, std::regex(statement), "");
  EXPECT_EQ(reading.background.find("passkey"), std::string::npos);
  return reading;
}

Sample sample_of(int64_t length, int64_t passkeys, int64_t words, uint64_t index) {
  KeyedRandom random{17, index};
  return task().make(test::training(plays()), length, passkeys, words, random);
}

std::string without_newlines(std::string text) {
  std::erase(text, '\n');
  return text;
}

std::string training_text() { return tokenizer().decode(test::training(plays()).tokens()); }

// Length, passkeys, words; the last of each pair leaves little or no background.
class PasskeySample : public testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t>> {};

TEST_P(PasskeySample, AsksForEveryStatedPasskeyInTheTemplatesWords) {
  const auto [length, passkeys, words] = GetParam();
  for (uint64_t index = 0; index < 24; ++index) {
    const Sample sample = sample_of(length, passkeys, words, index);
    ASSERT_EQ(static_cast<int64_t>(sample.tokens.size()), length);
    const Reading reading = read(tokenizer().decode(sample.tokens));
    ASSERT_EQ(static_cast<int64_t>(reading.statements.size()), passkeys);
    ASSERT_EQ(static_cast<int64_t>(reading.questions.size()), passkeys);
    std::map<std::string, std::string> stated;
    for (const Line& line : reading.statements) stated[line.ordinal] = line.words;
    ASSERT_EQ(static_cast<int64_t>(stated.size()), passkeys) << "an ordinal twice";
    for (const Line& line : reading.questions) {
      EXPECT_EQ(std::ranges::count(line.words, ' '), words);
      EXPECT_EQ(stated.at(line.ordinal), line.words);
      stated.erase(line.ordinal);
    }
    EXPECT_TRUE(stated.empty()) << "a passkey not asked for";
  }
}

TEST_P(PasskeySample, AnswersNameTheirTokensOrdinalAndDepth) {
  const auto [length, passkeys, words] = GetParam();
  for (uint64_t index = 0; index < 24; ++index) {
    const Sample sample = sample_of(length, passkeys, words, index);
    const std::string text = tokenizer().decode(sample.tokens);
    const Reading reading = read(text);
    ASSERT_EQ(sample.answers.size(), reading.questions.size());
    for (size_t i = 0; i < sample.answers.size(); ++i) {
      const Answer& answer = sample.answers[i];
      const auto first = sample.tokens.begin() + answer.first;
      EXPECT_EQ(tokenizer().decode({first, first + answer.count}), reading.questions[i].words + "\n");
      EXPECT_EQ(kOrdinals.at(static_cast<size_t>(answer.ordinal)), reading.questions[i].ordinal);
      const auto stated = std::ranges::find(reading.statements, reading.questions[i].ordinal, &Line::ordinal);
      const size_t before = tokenizer().encode(text.substr(0, stated->place)).size();
      EXPECT_DOUBLE_EQ(answer.depth, static_cast<double>(before) / static_cast<double>(length));
    }
  }
}

TEST_P(PasskeySample, TokensAreThoseOfItsWholeText) {
  const auto [length, passkeys, words] = GetParam();
  for (uint64_t index = 0; index < 24; ++index) {
    const Sample sample = sample_of(length, passkeys, words, index);
    EXPECT_EQ(tokenizer().encode(tokenizer().decode(sample.tokens)), sample.tokens);
  }
}

TEST_P(PasskeySample, BackgroundIsAPieceOfTheText) {
  const auto [length, passkeys, words] = GetParam();
  static const std::string text = training_text(), unbroken = without_newlines(text);
  for (uint64_t index = 0; index < 24; ++index) {
    const std::string background =
        read(tokenizer().decode(sample_of(length, passkeys, words, index).tokens)).background;
    EXPECT_NE(unbroken.find(without_newlines(background)), std::string::npos) << background;
    if (length >= 2 * task().least_length(passkeys, words)) {  // lines enough: none is broken for a statement
      EXPECT_NE(text.find(background), std::string::npos) << background;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PasskeySample,
                         testing::Values(std::tuple{512, 4, 8}, std::tuple{185, 4, 8}, std::tuple{512, 4, 32},
                                         std::tuple{377, 4, 32}, std::tuple{1024, 10, 32}, std::tuple{941, 10, 32},
                                         std::tuple{946, 10, 32}, std::tuple{2048, 10, 32}, std::tuple{4096, 10, 32},
                                         std::tuple{1024, 1, 4}, std::tuple{64, 1, 1}, std::tuple{1027, 7, 19}));

TEST(PasskeyTask, LengthIsExactWhateverIsAsked) {
  uint64_t index = 0;
  for (int64_t passkeys = 1; passkeys <= 10; ++passkeys)
    for (const int64_t words : {1, 4, 7, 32}) {
      const int64_t least = task().least_length(passkeys, words);
      for (const int64_t more : {0, 1, 2, 5, 10, 11, 63, 300})
        EXPECT_EQ(static_cast<int64_t>(sample_of(least + more, passkeys, words, index++).tokens.size()), least + more);
    }
}

TEST(PasskeyTask, LeastLengthIsThatOfTheTemplatesText) {
  EXPECT_EQ(task().least_length(4, 8), 185);
  EXPECT_EQ(task().least_length(4, 32), 377);
  EXPECT_EQ(task().least_length(10, 32), 941);
  const Reading reading = read(tokenizer().decode(sample_of(941, 10, 32, 0).tokens));
  EXPECT_EQ(reading.background, "");
}

TEST(PasskeyTask, ATextWithoutLinesGetsThemForItsStatements) {
  const TokenList one_line(std::vector<int32_t>(5000, tokenizer().encode(" the").at(0)));
  for (uint64_t index = 0; index < 50; ++index)
    for (const int64_t length : {185, 186, 188, 189, 190, 195, 230, 512}) {
      KeyedRandom random{3, index};
      const Sample sample = task().make(one_line.all(), length, 4, 8, random);
      ASSERT_EQ(static_cast<int64_t>(sample.tokens.size()), length);
      EXPECT_EQ(read(tokenizer().decode(sample.tokens)).statements.size(), 4U);
      EXPECT_EQ(tokenizer().encode(tokenizer().decode(sample.tokens)), sample.tokens);
    }
}

TEST(PasskeyTask, OrdinalsWordsOrderAndDepthAreSpread) {
  std::map<int64_t, int> ordinals;
  std::map<int32_t, int> words;
  std::vector<int> depths(10);
  int in_order = 0;
  for (uint64_t index = 0; index < 200; ++index) {
    const Sample sample = sample_of(1024, 4, 8, index);
    for (const Answer& answer : sample.answers) {
      ++ordinals[answer.ordinal];
      ++depths.at(static_cast<size_t>(answer.depth * 10));
      for (int64_t t = 0; t + 1 < answer.count; ++t) ++words[sample.tokens[answer.first + t]];
    }
    in_order += std::ranges::is_sorted(sample.answers, {}, &Answer::depth);
  }
  ASSERT_EQ(ordinals.size(), 10U);
  for (const auto& [ordinal, times] : ordinals) EXPECT_NEAR(times, 80, 40) << ordinal;
  ASSERT_EQ(words.size(), 26U);
  for (const auto& [word, times] : words) EXPECT_NEAR(times, 6400 / 26, 80) << word;
  for (size_t tenth = 0; tenth < 9; ++tenth) EXPECT_GT(depths[tenth], 40) << tenth;  // the last holds the questions
  EXPECT_GT(in_order, 0);
  EXPECT_LT(in_order, 30);  // one in 24
}

TEST(PasskeyTask, ASampleIsAFunctionOfItsRandomStream) {
  const Sample late = sample_of(512, 4, 8, 9), early = sample_of(512, 4, 8, 2);
  EXPECT_EQ(sample_of(512, 4, 8, 2).tokens, early.tokens);
  EXPECT_EQ(sample_of(512, 4, 8, 9).tokens, late.tokens);
  EXPECT_NE(early.tokens, late.tokens);
}

TEST(PasskeyTask, PasskeysThatDoNotFitAreRefused) {
  EXPECT_THROW(sample_of(184, 4, 8, 0), BadInput);
  EXPECT_THROW(sample_of(4096, 11, 8, 0), BadInput);
  EXPECT_THROW(sample_of(4096, 0, 8, 0), BadInput);
}

TEST(PasskeyTask, ABackgroundShorterThanTheSampleIsRefused) {
  KeyedRandom random{1};
  EXPECT_THROW(task().make(test::training(plays()).first(50), 512, 4, 8, random), c10::Error);
  EXPECT_THROW(plain_text(test::training(plays()).first(50), 51, random), c10::Error);
}

// The teacher's tokenizer with one thing changed, opened as a template.
template <class Change>
std::string fault_with(Change change) {
  auto root = nlohmann::json::parse(std::ifstream(test::kTokenizer));
  change(root);
  const test::TemporaryFolder folder;
  std::ofstream(folder.path() / "tokenizer.json") << root.dump();
  const Tokenizer changed = Tokenizer::open(folder.path() / "tokenizer.json");
  try {
    const PasskeyTask made(changed);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

TEST(PasskeyTask, ATokenizerWithoutEndOfTextIsRefused) {
  EXPECT_EQ(fault_with([](nlohmann::json&) {}), "no fault");
  EXPECT_THAT(fault_with([](nlohmann::json& root) { root["added_tokens"] = nlohmann::json::array(); }),
              testing::HasSubstr("<|endoftext|>"));
}

TEST(PlainText, IsAPieceOfTheTextAndReachesBothEnds) {
  const TokenList text({0, 1, 2, 3, 4, 5});
  std::set<int32_t> starts;
  for (uint64_t index = 0; index < 100; ++index) {
    KeyedRandom random{5, index};
    const Sample sample = plain_text(text.all(), 4, random);
    starts.insert(sample.tokens.at(0));
    const int32_t start = sample.tokens[0];
    EXPECT_EQ(sample.tokens, (std::vector<int32_t>{start, start + 1, start + 2, start + 3}));
    EXPECT_TRUE(sample.answers.empty());
  }
  EXPECT_EQ(starts, (std::set<int32_t>{0, 1, 2}));
}

}  // namespace
}  // namespace flashmorph
