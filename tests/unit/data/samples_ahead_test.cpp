#include "core/data/samples_ahead.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/unit/data/plays.h"

namespace flashmorph {
namespace {

TrainingSection three_steps() {
  TrainingSection section;
  section.tokens = 3 * 1024;
  section.batch_tokens = 1024;
  section.data = {.lengths = {256}, .passkey_share = 0.5, .passkeys = {1, 2}, .words = {2, 4}};
  return section;
}

void expect_same(const Batch& expected, const Batch& given) {
  EXPECT_TRUE(given.tokens_BT.equal(expected.tokens_BT));
  EXPECT_TRUE(given.answers_BT.equal(expected.answers_BT));
}

TEST(SamplesAhead, AreTheStreamsInTheExpectedOrderAndInAnyOther) {
  const SampleStream stream(test::plays(), test::task(), three_steps(), 1, "align");
  SamplesAhead ahead(
      stream,
      [](int64_t) {
        return SamplesAhead::Range{2, 4};
      },
      /*page_locked=*/false);
  for (int64_t step = 0; step < stream.steps(); ++step)
    for (const int64_t index : {2, 3}) expect_same(stream.micro_batch(step, index), ahead.micro_batch(step, index));
  for (const auto& [step, index] : {std::pair<int64_t, int64_t>{1, 0}, {0, 3}, {2, 2}, {2, 2}})
    expect_same(stream.micro_batch(step, index), ahead.micro_batch(step, index));
}

TEST(SamplesAhead, MayBeLeftWithASampleUnderWay) {
  const SampleStream stream(test::plays(), test::task(), three_steps(), 1, "align");
  SamplesAhead ahead(
      stream,
      [](int64_t) {
        return SamplesAhead::Range{0, 4};
      },
      /*page_locked=*/false);
  ahead.micro_batch(0, 0);
}

}  // namespace
}  // namespace flashmorph
