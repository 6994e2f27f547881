#include "core/tasks/word_lists.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr size_t kCommon = 10;
constexpr int64_t kCommonTokens = 120, kFrequentTokens = 50;
constexpr size_t kFrequent = 3;

struct Frequencies {
  int common, other;
};

// The first kCommon of `chosen` often, the `others` after them seldom, in an order of the key's.
std::string numbered(const std::vector<std::string>& words, const std::vector<size_t>& chosen, size_t others,
                     const Frequencies& times, uint64_t key) {
  std::vector<size_t> list;
  for (size_t i = 0; i < kCommon + others; ++i)
    list.insert(list.end(), static_cast<size_t>(i < kCommon ? times.common : times.other), chosen[i]);
  KeyedRandom random{key};
  std::string text;
  size_t number = 0;
  for (const size_t i : drawn(list.size(), list.size(), random))
    text += fmt::format("{}. {}\n", ++number, words[list[i]]);
  return text;
}

constexpr const char* kCommonQuestion =
    "\nQuestion: Which 10 words does the list above hold most often?\nAnswer: The 10 words that the list holds most "
    "often are:";

std::string answer(const std::vector<std::string>& words, const std::vector<size_t>& chosen) {
  std::string text;
  for (size_t i = 0; i < kCommon; ++i) text += fmt::format(" {}. {}", i + 1, words[chosen[i]]);
  return text;
}

std::string made_up_word(KeyedRandom& random) {
  std::string word;
  while (word.size() < 6) word += static_cast<char>('a' + random.below(26));
  return word;
}

// How often each rank comes among `count` words: proportional to 1 / rank^2.
std::vector<int64_t> zipf(int64_t count, size_t ranks) {
  double sum = 0.0;
  for (size_t rank = 1; rank <= ranks; ++rank) sum += 1.0 / static_cast<double>(rank * rank);
  std::vector<int64_t> times;
  for (size_t rank = 1; rank <= ranks; ++rank)
    times.push_back(std::llround(static_cast<double>(count) / (sum * static_cast<double>(rank * rank))));
  return times;
}

}  // namespace

TaskSample common_words(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  constexpr const char* kBefore = "Below is a numbered list of words. Remember those that it holds most often.\n\n";
  constexpr int64_t kShort = 4096;
  const Frequencies times = length < kShort ? Frequencies{6, 1} : Frequencies{30, 3};
  const std::vector<std::string>& words = material.words();
  const std::vector<size_t> example = drawn(kCommon + 8, words.size(), random),
                            chosen = drawn(words.size(), words.size(), random);
  const uint64_t example_key = random.next(), key = random.next();
  const std::string shown = kBefore + numbered(words, example, 8, {4, 1}, example_key) + kCommonQuestion +
                            answer(words, example) + "\n\n" + kBefore;
  TaskSample sample{.prompt = {}, .most = kCommonTokens};
  for (size_t i = 0; i < kCommon; ++i) sample.references.push_back(words[chosen[i]]);
  sample.prompt = filled(material, task.name, length, sample.most, [&](int64_t others) {
    if (static_cast<size_t>(others) + kCommon > words.size())
      throw BadInput("--lengths",
                     fmt::format("{} tokens of {} want more than the {} different words of the tasks' text", length,
                                 task.name, words.size()));
    return shown + numbered(words, chosen, static_cast<size_t>(others), times, key) + kCommonQuestion;
  });
  return sample;
}

TaskSample frequent_words(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  constexpr const char* kFiller = "...";
  const size_t ranks = static_cast<size_t>(std::max<int64_t>(length / 50, kFrequent + 2));
  std::vector<std::string> vocabulary = {kFiller};
  std::set<std::string> known;
  while (vocabulary.size() < ranks)
    if (const std::string word = made_up_word(random); known.insert(word).second) vocabulary.push_back(word);
  const uint64_t key = random.next();
  TaskSample sample{.prompt = {}, .most = kFrequentTokens};
  sample.references.assign(vocabulary.begin() + 1, vocabulary.begin() + 1 + kFrequent);
  sample.prompt = filled(material, task.name, length, sample.most, [&](int64_t units) {
    constexpr int64_t kWordsAUnit = 10;  // words a unit, so that the ranks keep their order from the first on
    std::vector<size_t> coded;
    const std::vector<int64_t> times = zipf(kWordsAUnit * (units + 4), ranks);
    for (size_t rank = 0; rank < ranks; ++rank) coded.insert(coded.end(), static_cast<size_t>(times[rank]), rank);
    KeyedRandom order{key};
    std::string text = "Count how often each word comes in the coded text below. Dots are no words.\n\n";
    for (const size_t i : drawn(coded.size(), coded.size(), order)) text += vocabulary[coded[i]] + " ";
    return text +
           "\n\nQuestion: Which 3 words come most often in the coded text above?\nAnswer: The 3 words that come most "
           "often are:";
  });
  return sample;
}

}  // namespace flashmorph
