#include "distributed/health/roll_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;
using testing::Not;

using Answers = std::vector<std::optional<RankAnswer>>;

RankAnswer::Call called(const std::string& call, int64_t number, double started, double seconds = 0.1,
                        std::vector<int> members = {0, 1, 2, 3}, const std::string& name = "data") {
  return {1, name, std::move(members), call, false, number, 7, started, seconds};
}

RankAnswer answered(int rank, std::vector<RankAnswer::Call> calls) {
  return {rank, "host", "align, step 7", 2.5, std::move(calls), {}};
}

TEST(FirstDivergence, NamesTheOddOneItsCallItsNumberAndTheOthers) {
  Answers answers;
  for (int rank = 0; rank < 4; ++rank)
    answers.push_back(
        answered(rank, {called("all_gather", 117, 10.0),
                        called(rank == 2 ? "all_reduce of Float [4] (16 bytes)" : "barrier", 118, 11.0)}));
  EXPECT_EQ(first_divergence(answers),
            "rank 2 called all_reduce of Float [4] (16 bytes) as number 118 of group data (ranks 0, 1, 2, 3); ranks 0, "
            "1, 3 called barrier");
}

TEST(FirstDivergence, IsTheEarliestOfAll) {
  Answers answers;
  for (int rank = 0; rank < 2; ++rank)
    answers.push_back(answered(rank, {called("a" + std::to_string(rank), 5, 20.0, 0.1, {0, 1}),
                                      called("b" + std::to_string(rank), 4, 19.0, 0.1, {0, 1})}));
  EXPECT_THAT(first_divergence(answers), HasSubstr("number 4"));
}

TEST(FirstDivergence, AnotherGroupOfThatNameAndAMessageAreNone) {
  RankAnswer::Call sent = called("send to 1", 5, 1.0), received = called("receive from 0", 5, 1.0);
  sent.is_message = received.is_message = true;
  EXPECT_EQ(first_divergence({answered(0, {called("barrier", 5, 1.0, 0.1, {0, 2}), sent}),
                              answered(1, {called("all_gather", 5, 1.0, 0.1, {1, 3}), received})}),
            "");
}

TEST(FirstDivergence, ARankThatIsBehindOrDeadIsNone) {
  EXPECT_EQ(first_divergence(
                {answered(0, {called("barrier", 5, 1.0)}), answered(1, {called("barrier", 4, 0.5)}), std::nullopt}),
            "");
}

TEST(WhoIsMissing, TellsTheDeadTheAbsentAndTheWaitingApart) {
  const Answers answers = {answered(0, {called("all_reduce", 9, 3.0, -1.0)}), std::nullopt,
                           answered(2, {called("barrier", 8, 2.0)}), answered(3, {})};
  const std::string text = who_is_missing(answers, {"a", "b", "c", "d"});
  EXPECT_THAT(text, HasSubstr("missing: rank 1 on b gives no answer"));
  EXPECT_THAT(
      text,
      HasSubstr("missing: rank 2 on c is in no collective; it has been in align, step 7 for 2.5 s, and its last was "
                "barrier, number 8 of group data (ranks 0, 1, 2, 3)"));
  EXPECT_THAT(text, HasSubstr("missing: rank 3 on d has been in align, step 7 for 2.5 s and in no collective yet"));
  EXPECT_THAT(text, HasSubstr("waiting: rank 0 on a in all_reduce, number 9"));
  EXPECT_THAT(text, Not(HasSubstr("missing: rank 0")));
}

TEST(WhoIsMissing, ACardThatIsNotDoneWaitsThoughItsHostHasLeftTheCall) {
  const TemporaryFolder folder;
  const RollCall roll_call(folder.path() / "health", {"a", "b"});
  roll_call.clear();
  RankAnswer on_card = answered(0, {called("all_reduce", 9, 3.0), called("barrier", 10, 4.0)});
  on_card.on_card = on_card.calls[0];
  roll_call.answer(on_card);
  roll_call.answer(answered(1, {called("barrier", 10, 4.0)}));
  const std::string text = who_is_missing(roll_call.answers(), {"a", "b"});
  EXPECT_THAT(text, HasSubstr("waiting: rank 0 on a, its card, in all_reduce, number 9 of group data"));
  EXPECT_THAT(text, HasSubstr("missing: rank 1 on b is in no collective"));
}

TEST(RollCall, OnlyTheFirstCallerSpeaks) {
  const TemporaryFolder folder;
  const RollCall one(folder.path() / "health", {"a", "b"}), other(folder.path() / "health", {"a", "b"});
  one.clear();
  EXPECT_FALSE(other.was_called());
  EXPECT_TRUE(one.call());
  EXPECT_FALSE(other.call());
  EXPECT_TRUE(other.was_called());
  one.clear();
  EXPECT_FALSE(other.was_called()) << "what an earlier start left is gone";
}

TEST(RollCall, AnswersComeBackAsTheyWereGiven) {
  const TemporaryFolder folder;
  const RollCall roll_call(folder.path() / "health", {"a", "b"});
  roll_call.clear();
  roll_call.answer(answered(1, {called("barrier", 8, 2.0, -1.0)}));
  const Answers answers = roll_call.answers();
  EXPECT_FALSE(answers[0].has_value());
  EXPECT_FALSE(roll_call.all_answered());
  ASSERT_TRUE(answers[1].has_value());
  EXPECT_EQ(answers[1]->phase, "align, step 7");
  ASSERT_NE(answers[1]->waits_in(), nullptr);
  EXPECT_EQ(answers[1]->waits_in()->call, "barrier");
  EXPECT_EQ(answers[1]->calls.at(0).members, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(answers[1]->calls.at(0).number, 8);
}

}  // namespace
}  // namespace flashmorph
