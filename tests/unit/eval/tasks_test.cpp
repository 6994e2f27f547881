#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/tasks/plays.h"
#include "core/tasks/task.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

const TaskMaterial& material() {
  static const TaskMaterial made(Tokenizer::open("tests/data/passkey-teacher/tokenizer.json"), plays());
  return made;
}

TaskSample sample_of(const std::string& task, int64_t length, int64_t i, uint64_t seed = 1) {
  return task_sample(task_named(task), material(), seed, length, i);
}

std::string prompt_of(const TaskSample& sample) { return material().tokenizer().decode(sample.prompt); }

size_t times(const std::string& part, const std::string& text) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(Tasks, FillTheirLengthAndDependOnSeedLengthAndNumberAlone) {
  for (const Task& task : tasks())
    for (const int64_t length : {1536, 2048}) {
      const TaskSample sample = sample_of(task.name, length, 0);
      const auto tokens = static_cast<int64_t>(sample.prompt.size()) + sample.most;
      EXPECT_LE(tokens, length) << task.name;
      EXPECT_GE(tokens, length - (sample.words.empty() ? length / 16 + 40 : 250)) << task.name;
      EXPECT_EQ(sample_of(task.name, length, 0).prompt, sample.prompt) << task.name;
      EXPECT_NE(sample_of(task.name, length, 1).prompt, sample.prompt) << task.name;
      EXPECT_NE(sample_of(task.name, length, 0, 2).prompt, sample.prompt) << task.name;
    }
}

TEST(Tasks, NeedlesStandOnceInTheTextWhereTheDepthSays) {
  const std::map<std::string, size_t> references = {{"needle-noise", 1}, {"needle-prose", 1}, {"needle-uuid", 1},
                                                    {"keys-prose", 1},   {"keys-only", 1},    {"keys-uuid", 1},
                                                    {"values", 4},       {"queries", 4}};
  for (const auto& [task, count] : references)
    for (int64_t i = 0; i < 5; ++i) {
      const TaskSample sample = sample_of(task, 2048, i);
      const std::string prompt = prompt_of(sample);
      ASSERT_EQ(sample.references.size(), count) << task;
      for (const std::string& value : sample.references) EXPECT_EQ(times(" is " + value + ".\n", prompt), 1U) << task;
      const std::string question = prompt.substr(prompt.find("\nQuestion: "));
      const size_t at = prompt.find(sample.references[0]);
      const std::string before = prompt.substr(0, at);
      const size_t name = before.rfind(" of ") + 4;
      EXPECT_THAT(question, HasSubstr(before.substr(name, at - 4 - name))) << task;  // " is " lies between
      if (count == 1) {
        EXPECT_NEAR(sample.depth, static_cast<double>(at) / static_cast<double>(prompt.size()), 0.15) << task;
      } else {
        EXPECT_EQ(sample.depth, -1.0);
      }
    }
}

TEST(Tasks, FollowingTheAssignmentsGivesTheVariables) {
  const TaskSample sample = sample_of("variables", 1024, 3);
  std::string text = prompt_of(sample);
  text = text.substr(text.rfind("Follow the chain"));
  std::map<std::string, std::string> values;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string var, name, equals, value, of;
    words >> var >> name >> equals >> value >> of;
    if (var == "VAR") values[name] = value == "VAR" ? values.at(of) : value;
  }
  std::set<std::string> held;
  const std::string asked = text.substr(text.find("hold the value ") + 15, 5);
  for (const auto& [name, value] : values)
    if (value == asked) held.insert(name);
  EXPECT_EQ(held, std::set<std::string>(sample.references.begin(), sample.references.end()));
  EXPECT_EQ(held.size(), 5U);
}

TEST(Tasks, CountingGivesTheCommonAndTheFrequentWords) {
  for (const auto& [task, length, often] : {std::tuple{"common-words", 2048, 6}, {"common-words", 4096, 30}}) {
    const TaskSample sample = sample_of(task, length, 2);
    std::string list = prompt_of(sample);
    list = list.substr(list.rfind("Below is a numbered"));
    for (const std::string& word : sample.references) EXPECT_EQ(times(". " + word + "\n", list), often) << length;
  }
  const TaskSample sample = sample_of("frequent-words", 2048, 1);
  std::string text = prompt_of(sample);
  const size_t first = text.find("\n\n"), last = text.rfind("\n\nQuestion");
  std::map<std::string, int> counts;
  std::istringstream words(text.substr(first, last - first));
  for (std::string word; words >> word;)
    if (word != "...") ++counts[word];
  int least = INT32_MAX, most_of_others = 0;
  for (const auto& [word, count] : counts) {
    const bool is_asked = std::ranges::count(sample.references, word) > 0;
    if (is_asked) least = std::min(least, count);
    if (!is_asked) most_of_others = std::max(most_of_others, count);
  }
  EXPECT_EQ(sample.references.size(), 3U);
  EXPECT_GT(least, most_of_others);
}

TEST(Tasks, AScoreIsTheShareOfWhatIsFound) {
  const Tokenizer& tokenizer = material().tokenizer();
  const TaskSample four{.prompt = {}, .references = {"123", "Abc", "456", "789"}};
  EXPECT_EQ(scores(four, tokenizer, tokenizer.encode("456 aBc, 12 3")), (std::vector<double>{0, 1, 1, 0}));
  const TaskSample words{.prompt = {}, .words = {5, 6, 7}};
  EXPECT_EQ(scores(words, tokenizer, {5, 7}), (std::vector<double>{1, 0, 0}));
  EXPECT_EQ(scores(words, tokenizer, {4, 6, 7, 8}), (std::vector<double>{0, 1, 1}));
}

TEST(Tasks, RefuseALengthThatIsTooShortAndANameThatIsNone) {
  for (const Task& task : tasks()) EXPECT_THROW(sample_of(task.name, 140, 0), BadInput) << task.name;
  EXPECT_THROW(task_named("needles"), BadInput);
}

}  // namespace
}  // namespace flashmorph
