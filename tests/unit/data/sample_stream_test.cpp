#include "core/data/sample_stream.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"

namespace flashmorph {
namespace {

using test::plays;
using test::task;

// Steps of 2048 tokens: 4 sequences of 512 or 8 of 256, in micro-batches of 512 tokens.
TrainingSection mixed_lengths() {
  TrainingSection section;
  section.tokens = 20000;
  section.batch_tokens = 2048;
  section.data = {.lengths = {512, 256}, .passkey_share = 0.5, .passkeys = {1, 3}, .words = {2, 9}};
  return section;
}

SampleStream stream(const TrainingSection& section, int64_t seed = 1, const std::string& stage = "distill") {
  return {plays(), task(), section, seed, stage};
}

bool same(const Batch& a, const Batch& b) { return a.tokens_BT.equal(b.tokens_BT) && a.answers_BT.equal(b.answers_BT); }

at::Tensor tokens_of_step(const SampleStream& data, int64_t step) {
  std::vector<at::Tensor> parts;
  for (int64_t index = 0; index < data.micro_batches(step); ++index)
    parts.push_back(data.micro_batch(step, index).tokens_BT);
  return at::cat(parts);
}

std::vector<int32_t> as_tokens(const at::Tensor& row) {
  const at::Tensor narrow = row.to(at::kInt).contiguous();
  return {narrow.const_data_ptr<int32_t>(), narrow.const_data_ptr<int32_t>() + narrow.numel()};
}

bool is_part_of(TokenView view, const std::vector<int32_t>& piece) {
  const std::vector<int32_t> text = view.tokens();
  return std::search(text.begin(), text.end(), piece.begin(), piece.end()) != text.end();
}

TEST(BatchOf, MarksTheStatesThatMustKnowAnAnswersNextToken) {
  const Sample one{{10, 11, 12, 13, 14, 15}, {{2, 2, 0, 0.0}, {5, 1, 1, 0.0}}}, plain{{20, 21, 22, 23, 24, 25}, {}};
  const Batch batch = batch_of({one, plain});
  EXPECT_TRUE(batch.tokens_BT.equal(at::stack({at::arange(10, 16, at::kLong), at::arange(20, 26, at::kLong)})));
  const at::Tensor marked = at::tensor({0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0}, at::kLong).view({2, 6});
  EXPECT_TRUE(batch.answers_BT.equal(marked.to(at::kBool)));
}

TEST(BatchOf, PacksSamplesThatHoldSeveralDocumentsInOneRow) {
  const Sample two{{10, 11, 12, 13}, {}, {3}}, asked{{20, 21, 22, 23}, {{2, 1, 0, 0.0}}},
      three{{30, 31, 32, 33}, {}, {1, 2}};
  const Batch batch = batch_of({two, asked, three});
  EXPECT_TRUE(batch.tokens_BT.equal(
      at::cat({at::arange(10, 14, at::kLong), at::arange(20, 24, at::kLong), at::arange(30, 34, at::kLong)})
          .view({1, 12})));
  EXPECT_TRUE(batch.documents->equal(at::tensor({0, 3, 4, 8, 9, 10, 12}, at::kLong)));
  EXPECT_TRUE(batch.answers_BT.flatten().nonzero().flatten().equal(at::tensor({5}, at::kLong)));
  EXPECT_TRUE(predicting_places(batch).equal(at::tensor({0, 1, 4, 5, 6, 10}, at::kLong)));
  EXPECT_FALSE(batch_of({asked}).documents);
}

TEST(BatchOf, SamplesOfTwoLengthsAreRefused) {
  EXPECT_THROW(batch_of({Sample{{1, 2, 3}, {}}, Sample{{1, 2}, {}}}), c10::Error);
}

TEST(SampleStream, IsAFunctionOfSeedStageAndIndex) {
  const SampleStream data = stream(mixed_lengths()), again = stream(mixed_lengths());
  std::vector<Batch> forward;
  for (int64_t step = 0; step < 3; ++step)
    for (int64_t index = 0; index < data.micro_batches(step); ++index) forward.push_back(data.micro_batch(step, index));
  for (int64_t step = 2; step >= 0; --step)
    for (int64_t index = again.micro_batches(step) - 1; index >= 0; --index) {
      EXPECT_TRUE(same(again.micro_batch(step, index), forward.back())) << step << ", " << index;
      forward.pop_back();
    }
}

TEST(SampleStream, AnotherSeedOrStageIsOtherData) {
  TrainingSection section = mixed_lengths();
  section.data.lengths = {256};
  const at::Tensor tokens = tokens_of_step(stream(section), 0);
  EXPECT_TRUE(tokens.equal(tokens_of_step(stream(section), 0)));
  EXPECT_FALSE(tokens.equal(tokens_of_step(stream(section, 2), 0)));
  EXPECT_FALSE(tokens.equal(tokens_of_step(stream(section, 1, "align"), 0)));
}

TEST(SampleStream, NoSequenceComesTwice) {
  const SampleStream data = stream(mixed_lengths());
  std::set<std::vector<int32_t>> beginnings;
  int64_t sequences = 0;
  for (int64_t step = 0; step < data.steps(); ++step)
    for (const at::Tensor& row : tokens_of_step(data, step).unbind()) {
      beginnings.insert(as_tokens(row.narrow(0, 0, 200)));
      ++sequences;
    }
  EXPECT_EQ(static_cast<int64_t>(beginnings.size()), sequences);
}

TEST(SampleStream, SamplesAreTheSameInMicroBatchesOfAnySize) {
  TrainingSection section = mixed_lengths();
  for (int64_t step = 0; step < 4; ++step) {
    const at::Tensor whole = tokens_of_step(stream(section), step);
    for (const int64_t tokens : {512, 1024, 2048}) {
      TrainingSection cut = section;
      cut.micro_batch_tokens = tokens;
      const SampleStream data = stream(cut);
      EXPECT_EQ(data.micro_batches(step) * tokens, 2048);
      EXPECT_EQ(data.micro_batch_sequences(step) * data.length(step), tokens);
      EXPECT_TRUE(tokens_of_step(data, step).equal(whole)) << step << ", " << tokens;
    }
  }
}

TEST(SampleStream, StepsHoldTheirTokensInOneOfTheLengths) {
  const SampleStream data = stream(mixed_lengths());
  EXPECT_EQ(data.steps(), 10);  // 20000 / 2048, rounded up
  std::set<int64_t> lengths;
  for (int64_t step = 0; step < data.steps(); ++step) {
    lengths.insert(data.length(step));
    EXPECT_EQ(data.micro_batch_sequences(step), 512 / data.length(step));  // the longest length
    const at::Tensor tokens = tokens_of_step(data, step);
    EXPECT_EQ(tokens.sizes(), (std::vector<int64_t>{2048 / data.length(step), data.length(step)}));
  }
  EXPECT_EQ(lengths, (std::set<int64_t>{256, 512}));
}

TEST(SampleStream, DrawsPasskeysAndWordsFromTheWholeOfTheirRanges) {
  TrainingSection section = mixed_lengths();
  section.tokens = 1 << 17;
  const SampleStream data = stream(section);
  std::set<int64_t> passkeys, words;
  int64_t sequences = 0, with_passkeys = 0;
  for (int64_t step = 0; step < data.steps(); ++step)
    for (int64_t index = 0; index < data.micro_batches(step); ++index)
      for (const at::Tensor& row : data.micro_batch(step, index).answers_BT.unbind()) {
        ++sequences;
        const at::Tensor marked = row.to(at::kLong), starts = marked.diff().eq(1).sum();
        if (marked.sum().item<int64_t>() == 0) continue;
        ++with_passkeys;
        passkeys.insert(starts.item<int64_t>());
        words.insert(marked.sum().item<int64_t>() / starts.item<int64_t>() - 1);  // but the newline
      }
  EXPECT_THAT(passkeys, testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(words, testing::ElementsAre(2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_NEAR(static_cast<double>(with_passkeys) / static_cast<double>(sequences), 0.5, 0.1);
}

TEST(SampleStream, ShareDecidesBetweenPasskeysAndPlainText) {
  TrainingSection section = mixed_lengths();
  for (const double share : {0.0, 1.0}) {
    section.data.passkey_share = share;
    const SampleStream data = stream(section);
    for (int64_t step = 0; step < data.steps(); ++step)
      for (int64_t index = 0; index < data.micro_batches(step); ++index) {
        const at::Tensor asked = data.micro_batch(step, index).answers_BT.any(1);
        EXPECT_EQ(asked.sum().item<int64_t>(), share == 1.0 ? asked.size(0) : 0);
      }
  }
}

TEST(SampleStream, ReadsTheTrainingPartOnly) {
  TrainingSection section = mixed_lengths();
  section.data.passkey_share = 0.0;
  const SampleStream data = stream(section);
  for (int64_t step = 0; step < data.steps(); ++step)
    for (const at::Tensor& row : tokens_of_step(data, step).unbind()) {
      EXPECT_TRUE(is_part_of(test::training(plays()), as_tokens(row)));
      EXPECT_FALSE(is_part_of(test::held_out(plays()), as_tokens(row)));
    }
}

TEST(SampleStream, DocumentsOfTheCorpusAreKeptApart) {
  const test::TemporaryFolder folder;
  std::ofstream lines(folder.path() / "lines.jsonl");
  for (int document = 0; document < 2000; ++document) lines << "{\"text\": \"a few words of one document\\n\"}\n";
  lines.close();
  const Corpus corpus = Corpus::open({.jsonl = (folder.path() / "lines.jsonl").string()}, test::tokenizer(), 1024);
  const std::vector<int32_t> document = test::tokenizer().encode("a few words of one document\n");
  TrainingSection section = mixed_lengths();
  section.micro_batch_tokens = 1024;
  section.data.passkey_share = 0.4;
  const SampleStream data(corpus, task(), section, 1, "distill");
  int64_t whole = 0;
  for (int64_t step = 0; step < data.steps(); ++step)
    for (int64_t index = 0; index < data.micro_batches(step); ++index) {
      const Batch batch = data.micro_batch(step, index);
      ASSERT_EQ(batch.tokens_BT.sizes(), (std::vector<int64_t>{1, 1024}));
      EXPECT_EQ(data.micro_batch_shape(step), (std::pair<int64_t, int64_t>{1, 1024}));
      ASSERT_TRUE(batch.documents.has_value()) << "even where passkeys alone are one document a sequence";
      const auto offsets = batch.documents->accessor<int64_t, 1>();
      for (int64_t d = 0; d + 1 < offsets.size(0); ++d) {
        ASSERT_LT(offsets[d], offsets[d + 1]);
        whole += as_tokens(batch.tokens_BT[0].slice(0, offsets[d], offsets[d + 1])) == document;
      }
    }
  EXPECT_GT(whole, 500);

  section.data.passkey_share = 1.0;
  const SampleStream passkeys(corpus, task(), section, 1, "distill");
  EXPECT_FALSE(passkeys.micro_batch(0, 0).documents) << "a document a sequence needs no packing";
  EXPECT_EQ(passkeys.micro_batch_shape(0), std::pair(passkeys.micro_batch_sequences(0), passkeys.length(0)));
}

TEST(SampleStream, PasskeysThatDoNotFitTheShortestLengthAreRefused) {
  TrainingSection section;
  section.data = {.lengths = {2048, 512}, .passkey_share = 1.0, .passkeys = {1, 10}, .words = {4, 32}};
  try {
    stream(section, 1, "select");
    FAIL() << "no fault";
  } catch (const BadInput& fault) {
    EXPECT_EQ(fault.faults().at(0).where, "stages.select.data.lengths");
    EXPECT_EQ(fault.faults().at(0).what, "10 passkeys of 32 words need 941 tokens, the shortest length is 512");
  }
  section.data.passkey_share = 0.0;
  EXPECT_NO_THROW(stream(section, 1, "select"));
  section.data = {.lengths = {185}, .passkey_share = 1.0, .passkeys = {1, 4}, .words = {1, 8}};
  EXPECT_NO_THROW(stream(section));
}

TEST(Batch, EveryTokenPredictsTheNextOfItsOwnSequenceAndDocument) {
  const auto places = [](const Batch& batch) {
    const at::Tensor found = predicting_places(batch);
    return std::vector<int64_t>(found.data_ptr<int64_t>(), found.data_ptr<int64_t>() + found.numel());
  };
  EXPECT_THAT(places({at::zeros({2, 3}, at::kLong), {}, std::nullopt}), testing::ElementsAre(0, 1, 3, 4));
  const at::Tensor documents = at::tensor({int64_t{0}, int64_t{2}, int64_t{3}, int64_t{6}});
  EXPECT_THAT(places({at::zeros({1, 6}, at::kLong), {}, documents}), testing::ElementsAre(0, 3, 4));
}

}  // namespace
}  // namespace flashmorph
