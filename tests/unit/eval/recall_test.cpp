#include "core/eval/recall.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/eval/decoder.h"
#include "tests/unit/data/plays.h"
#include "tests/unit/eval/models.h"

namespace flashmorph {
namespace {

constexpr int64_t kVocabulary = 64;  // of the small model

int64_t likeliest_after(const MorphableModel& model, const Routes& routes, const std::vector<int64_t>& context) {
  return test::logits_of(model, routes, context)[-1].argmax().item<int64_t>();
}

RecallCount total(const RecallByDepth& table) {
  RecallCount sum;
  for (const RecallCount& bucket : table) sum += bucket;
  return sum;
}

void expect_counts(const RecallCount& count, const RecallCount& expected) {
  EXPECT_EQ(count.words, expected.words);
  EXPECT_EQ(count.right_words, expected.right_words);
  EXPECT_EQ(count.answers, expected.answers);
  EXPECT_EQ(count.whole_answers, expected.whole_answers);
}

void append_random(std::vector<int64_t>& tokens, int64_t count, KeyedRandom& random) {
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int64_t>(random.below(kVocabulary)));
}

Sample sample_with(const std::vector<int64_t>& tokens, std::vector<Answer> answers) {
  return {{tokens.begin(), tokens.end()}, std::move(answers)};
}

// A sequence whose answer the model gets right where `right` says so, given the true tokens before.
Sample forced_sample(const MorphableModel& model, const Routes& routes, const std::vector<bool>& right, double depth,
                     uint64_t seed) {
  KeyedRandom random{seed};
  std::vector<int64_t> tokens;
  append_random(tokens, 9, random);
  const Answer answer{9, static_cast<int64_t>(right.size()), 0, depth};
  for (const bool is_right : right) {
    const int64_t likeliest = likeliest_after(model, routes, tokens);
    tokens.push_back(is_right ? likeliest : (likeliest + 1) % kVocabulary);
  }
  append_random(tokens, 20 - static_cast<int64_t>(tokens.size()), random);
  return sample_with(tokens, {answer});
}

TEST(TeacherForcedRecall, CountsWordsAndWholeAnswersByDepth) {
  const MorphableModel model = test::small_random_model();
  for (const Routes& routes : {test::all_full(model), test::full_linear_full()}) {
    const std::vector<Sample> samples = {
        forced_sample(model, routes, {true, true, true, true}, 0.0, 1),    // whole
        forced_sample(model, routes, {true, false, true, true}, 0.49, 2),  // one word wrong
        forced_sample(model, routes, {true, true, true, false}, 0.5, 3),   // only the closing newline wrong
        forced_sample(model, routes, {false, false, true}, 0.99, 4),
        forced_sample(model, routes, {true, true}, 0.7, 5)};
    for (const int64_t batch : {1, 2, 5, 9}) {
      const RecallByDepth table = teacher_forced_recall(model, routes, samples, 2, batch);
      ASSERT_EQ(table.size(), 2U);
      expect_counts(table[0], {.words = 6, .right_words = 5, .answers = 2, .whole_answers = 1});
      expect_counts(table[1], {.words = 6, .right_words = 4, .answers = 3, .whole_answers = 1});
    }
  }
}

// What the model writes after the context when nothing ends it.
std::vector<int64_t> written(const MorphableModel& model, const Routes& routes, std::vector<int64_t> context,
                             int64_t count) {
  const size_t start = context.size();
  for (int64_t i = 0; i < count; ++i) context.push_back(likeliest_after(model, routes, context));
  return {context.begin() + static_cast<std::ptrdiff_t>(start), context.end()};
}

int64_t token_not_in(const std::vector<int64_t>& tokens) {
  int64_t token = 0;
  while (std::find(tokens.begin(), tokens.end(), token) != tokens.end()) ++token;
  return token;
}

// Builds a sample beside the context that the model has while it answers: its own answers instead of the true ones.
struct Conversation {
  const MorphableModel& model;
  const Routes& routes;
  KeyedRandom random;
  std::vector<int64_t> tokens = {}, context = {};
  std::vector<Answer> answers = {};

  std::vector<int64_t> ask(int64_t question, int64_t count) {
    const auto start = static_cast<std::ptrdiff_t>(tokens.size());
    append_random(tokens, question, random);
    context.insert(context.end(), tokens.begin() + start, tokens.end());
    return written(model, routes, context, count);
  }
  void answer(const std::vector<int64_t>& truth, const std::vector<int64_t>& given, double depth) {
    answers.push_back({static_cast<int64_t>(tokens.size()), static_cast<int64_t>(truth.size()), 0, depth});
    tokens.insert(tokens.end(), truth.begin(), truth.end());
    context.insert(context.end(), given.begin(), given.end());
  }
};

class GreedyRecall : public testing::TestWithParam<uint64_t> {};

TEST_P(GreedyRecall, ReadsOnAfterTheModelsOwnAnswers) {
  const MorphableModel model = test::small_random_model();
  for (const Routes& routes : {test::all_full(model), test::full_linear_full()}) {
    Conversation talk{model, routes, KeyedRandom{GetParam()}};
    RecallByDepth expected(3);

    // Its answer is too long: the end comes as another token, and one word is another.
    std::vector<int64_t> given = talk.ask(12, 5);
    talk.answer({given[0], given[1], (given[2] + 1) % kVocabulary, given[3], token_not_in(given)}, given, 0.1);
    expected[0] += {.words = 4, .right_words = 3, .answers = 1, .whole_answers = 0};

    // Its answer ends at once: the words that follow are missing, and the context goes on with the question.
    given = talk.ask(6, 1);
    talk.answer({(given[0] + 1) % kVocabulary, (given[0] + 2) % kVocabulary, given[0]}, given, 0.5);
    expected[1] += {.words = 2, .right_words = 0, .answers = 1, .whole_answers = 0};

    // Its answer is right if those before are as the model gave them.
    given = talk.ask(6, 2);
    const bool ends_early = given[0] == given[1];
    talk.answer(given, ends_early ? std::vector<int64_t>{given[0]} : given, 0.99);
    expected[2] += {.words = 1, .right_words = 1, .answers = 1, .whole_answers = ends_early ? 0 : 1};

    const std::vector<Sample> samples = {sample_with(talk.tokens, talk.answers)};
    const RecallByDepth table = greedy_recall(model, routes, samples, 3);
    ASSERT_EQ(table.size(), 3U);
    for (size_t bucket = 0; bucket < 3; ++bucket) expect_counts(table[bucket], expected[bucket]);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, GreedyRecall, testing::Values(1, 2, 3, 4, 5, 6));

// Rows of different lengths, read in chunks, write together what each would alone; one ends early and reads on.
TEST(Decoder, RowsWriteWhatEachWouldAlone) {
  for (const char* mixer : {"lightning", "gla", "gated_delta_net"}) {
    MixerSection section;
    section.kind = mixer;
    MorphableModel model = test::small_random_model();
    model.add_branches(section, 1);
    for (const Routes& routes : {test::all_full(model), test::full_linear_full()}) {
      KeyedRandom random{17};
      std::vector<std::vector<int64_t>> contexts(3);
      for (const int64_t row : {0, 1, 2}) append_random(contexts[row], 3 + 8 * row, random);
      Decoder decoder(model, routes, 3, /*room=*/40, /*chunk=*/7);
      const auto read = [&](int64_t row, const std::vector<int64_t>& tokens) {
        decoder.read(row, {tokens.begin(), tokens.end()});
      };
      for (const int64_t row : {2, 0, 1}) read(row, contexts[row]);
      const auto expect_written = [&](const std::vector<int64_t>& most, const Decoder::Ends& ends) {
        const std::vector<Decoder::Written> given = decoder.write(most, ends);
        for (size_t row = 0; row < 3; ++row) {
          std::vector<int64_t> expected = written(model, routes, contexts[row], most[row]);
          if (row == 1 && expected.size() > 2) expected.resize(2);
          EXPECT_EQ(std::vector<int64_t>(given[row].begin(), given[row].end()), expected) << mixer << ", row " << row;
          contexts[row].insert(contexts[row].end(), expected.begin(), expected.end());
        }
      };
      const auto after_two = [](int64_t row, const Decoder::Written& so_far) { return row == 1 && so_far.size() == 2; };
      expect_written({4, 6, 0}, after_two);
      for (const int64_t row : {1, 0}) {  // the last token of its own, and more
        std::vector<int64_t> more = {contexts[row].back()};
        append_random(more, 9 - 8 * row, random);
        contexts[row].insert(contexts[row].end(), more.begin() + 1, more.end());
        read(row, more);
      }
      expect_written({3, 1, 5}, after_two);
    }
  }
}

TEST(RecallCount, WordRecallIsAShareAndZeroOfNothing) {
  EXPECT_DOUBLE_EQ((RecallCount{.words = 8, .right_words = 6, .answers = 1, .whole_answers = 0}).word_recall(), 0.75);
  EXPECT_DOUBLE_EQ(RecallCount{}.word_recall(), 0.0);
}

std::vector<Sample> held_out_samples(int64_t count) {
  std::vector<Sample> samples;
  for (int64_t i = 0; i < count; ++i) {
    KeyedRandom random{11, static_cast<uint64_t>(i)};
    samples.push_back(test::task().make(test::plays().held_out(), 512, 4, 8, random));
  }
  return samples;
}

TEST(PasskeyTeacher, RecallsEveryWordTeacherForcedAndGreedily) {
  const MorphableModel teacher = test::passkey_teacher();
  const std::vector<Sample> samples = held_out_samples(8);
  const RecallCount all{.words = 256, .right_words = 256, .answers = 32, .whole_answers = 32};
  expect_counts(total(teacher_forced_recall(teacher, test::all_full(teacher), samples, 4)), all);
  expect_counts(total(greedy_recall(teacher, test::all_full(teacher), samples, 4)), all);
}

TEST(PasskeyTeacher, WithoutFullAttentionItRecallsAlmostNothing) {
  MorphableModel teacher = test::passkey_teacher();
  teacher.add_branches({}, 1);
  const Routes all_linear(static_cast<size_t>(teacher.layer_count()), Route::linear());
  const RecallCount count = total(teacher_forced_recall(teacher, all_linear, held_out_samples(4), 4));
  EXPECT_EQ(count.words, 128);
  EXPECT_LT(count.word_recall(), 0.3);
}

}  // namespace
}  // namespace flashmorph
