#include "core/tasks/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "core/base/bad_input.h"
#include "core/tasks/needles.h"
#include "core/tasks/passkey.h"
#include "core/tasks/variables.h"
#include "core/tasks/word_lists.h"

namespace flashmorph {
namespace {

constexpr uint64_t kTasks = 0x7461736b;  // keeps these samples apart from others' of the same seed

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

const std::vector<Task>& tasks() {
  static const std::vector<Task> all = {
      {"needle-noise", "a number hidden in one repeated line", needle_in_noise},
      {"needle-prose", "a number hidden in prose", needle_in_prose},
      {"needle-uuid", "a UUID hidden in prose", uuid_in_prose},
      {"keys-prose", "one of 4 numbers hidden in prose, by its name", keys_in_prose},
      {"keys-only", "one number of a text of nothing but numbers with names", keys_only},
      {"keys-uuid", "one UUID of a text of nothing but pairs of UUIDs", uuid_keys_only},
      {"values", "all 4 numbers of one name, hidden in prose", values_in_prose},
      {"queries", "4 numbers hidden in prose, by their names, in one answer", queries_in_prose},
      {"variables", "the 5 variables that a chain of assignments gives one value", variable_chain},
      {"common-words", "the 10 words that a list holds far more often than all others", common_words},
      {"frequent-words", "the 3 most frequent words of a coded text", frequent_words},
      {"passkey", "the words of one of 4 passkeys, written by the model", passkey_words},
      {"passkey-forced", "the same, each word asked for behind the right words before it", passkey_words, true},
  };
  return all;
}

const Task& task_named(const std::string& name, const std::string& where) {
  std::string known;
  for (const Task& task : tasks()) {
    if (task.name == name) return task;
    known += (known.empty() ? "" : ", ") + std::string(task.name);
  }
  throw BadInput(where, fmt::format("'{}' is no task, expected some of: {}", name, known));
}

TaskSample task_sample(const Task& task, const TaskMaterial& material, uint64_t seed, int64_t length, int64_t i) {
  KeyedRandom random{seed, kTasks, static_cast<uint64_t>(length), static_cast<uint64_t>(i)};
  return task.make(task, material, length, random);
}

std::vector<double> scores(const TaskSample& sample, const Tokenizer& tokenizer, const std::vector<int32_t>& written) {
  std::vector<double> found;
  const std::string text = lower(tokenizer.decode(written));
  for (const std::string& reference : sample.references)
    found.push_back(text.find(lower(reference)) != std::string::npos ? 1.0 : 0.0);
  for (size_t word = 0; word < sample.words.size(); ++word)
    found.push_back(word < written.size() && written[word] == sample.words[word] ? 1.0 : 0.0);
  return found;
}

}  // namespace flashmorph
