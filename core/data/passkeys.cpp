#include "core/data/passkeys.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr const char* kWords[] = {"alpha",  "bravo",   "charlie", "delta",  "echo",   "foxtrot", "golf",
                                  "hotel",  "india",   "juliett", "kilo",   "lima",   "mike",    "november",
                                  "oscar",  "papa",    "quebec",  "romeo",  "sierra", "tango",   "uniform",
                                  "victor", "whiskey", "xray",    "yankee", "zulu"};
constexpr const char* kOrdinals[] = {"first", "second",  "third",  "fourth", "fifth",
                                     "sixth", "seventh", "eighth", "ninth",  "tenth"};

using Tokens = std::vector<int32_t>;

void append(Tokens& tokens, const Tokens& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

template <class Item>
void shuffle(std::vector<Item>& items, KeyedRandom& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

size_t longest(const std::vector<Tokens>& pieces) {
  size_t most = 0;
  for (const Tokens& piece : pieces) most = std::max(most, piece.size());
  return most;
}

TokenView random_window(TokenView text, size_t length, KeyedRandom& random) {
  TORCH_CHECK(text.size() >= length, "a window of ", length, " tokens of a text of ", text.size());
  return text.subspan(random.below(text.size() - length + 1), length);
}

struct Passkey {
  int64_t ordinal;
  Tokens words;
  int64_t start = 0;  // of its statement, in the finished sample
};

std::vector<Passkey> draw_passkeys(int64_t count, int64_t words, const std::vector<Tokens>& vocabulary,
                                   KeyedRandom& random) {
  std::vector<int64_t> ordinals(PasskeyTask::kMostPasskeys);
  std::iota(ordinals.begin(), ordinals.end(), 0);
  shuffle(ordinals, random);
  std::vector<Passkey> keys;
  for (int64_t i = 0; i < count; ++i) {
    Passkey key{ordinals[i], {}};
    for (int64_t w = 0; w < words; ++w) append(key.words, vocabulary[random.below(vocabulary.size())]);
    keys.push_back(std::move(key));
  }
  return keys;
}

// `count` places of the window, in order: right after a newline, or anywhere when it has too few of them, but with
// `count` tokens of the window still to come, which can give way to newlines.
std::vector<size_t> line_places(const Tokens& window, size_t count, int32_t newline, KeyedRandom& random) {
  std::vector<size_t> places;
  for (size_t i = 0; i < window.size(); ++i)
    if (window[i] == newline) places.push_back(i + 1);
  if (places.size() < count) {
    places.resize(window.size() - std::min(window.size(), count) + 1);
    std::iota(places.begin(), places.end(), 0);
  }
  std::vector<size_t> chosen;
  if (places.size() >= count) {
    shuffle(places, random);
    chosen.assign(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(count));
  } else {
    for (size_t i = 0; i < count; ++i) chosen.push_back(places[random.below(places.size())]);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace

PasskeyTask::PasskeyTask(const Tokenizer& tokenizer) {
  for (const char* word : kWords) words_.push_back(tokenizer.encode_rest(std::string(" ") + word));
  for (const char* ordinal : kOrdinals) ordinals_.push_back(tokenizer.encode_rest(std::string(" ") + ordinal));
  statement_before_ = tokenizer.encode_rest("Remember this sequence of words, it is the");
  statement_after_ = tokenizer.encode_rest(" passkey to the vault:");
  question_before_ = tokenizer.encode_rest("\nWhat is the");
  question_after_ = tokenizer.encode_rest(" passkey to the vault?\nPasskey:");
  question_end_ = tokenizer.encode_rest(" passkey to the vault?");
  answer_start_ = tokenizer.encode_rest("Passkey:");
  const Tokens newline = tokenizer.encode_rest("\n");
  if (newline.size() != 1)
    throw BadInput("tokenizer.json", "writes a newline as " + std::to_string(newline.size()) + " tokens, expected one");
  newline_ = newline[0];
  end_of_text_ = tokenizer.end_of_text();
}

int64_t PasskeyTask::least_length(int64_t passkeys, int64_t words) const {
  const size_t answer = static_cast<size_t>(words) * longest(words_) + 1;
  const size_t statement = statement_before_.size() + longest(ordinals_) + statement_after_.size() + answer;
  const size_t question = question_before_.size() + longest(ordinals_) + question_after_.size() + answer;
  return passkeys * static_cast<int64_t>(statement + question) + 1;
}

Sample PasskeyTask::make(TokenView background, int64_t length, int64_t passkeys, int64_t words,
                         KeyedRandom& random) const {
  if (passkeys < 1 || passkeys > kMostPasskeys || least_length(passkeys, words) > length)
    throw BadInput("passkeys", std::to_string(passkeys) + " passkeys of " + std::to_string(words) +
                                   " words do not fit " + std::to_string(length) + " tokens");
  std::vector<Passkey> keys = draw_passkeys(passkeys, words, words_, random);
  Sample sample;
  const auto append_line = [&](const Tokens& before, const Passkey& key, const Tokens& after) {
    for (const Tokens* piece : {&before, &ordinals_[key.ordinal], &after, &key.words}) append(sample.tokens, *piece);
    sample.tokens.push_back(newline_);
  };

  size_t used = 1;  // the end of text
  for (const Passkey& key : keys)
    used += statement_before_.size() + statement_after_.size() + question_before_.size() + question_after_.size() +
            2 * (ordinals_[key.ordinal].size() + key.words.size() + 1);
  const Tokens window = random_window(background, static_cast<size_t>(length) - used, random).tokens();
  const std::vector<size_t> places = line_places(window, keys.size(), newline_, random);

  size_t copied = 0, added = 0;  // tokens of the window, newlines that make way for a statement
  const auto copy_to = [&](size_t end) {
    for (; copied < end; ++copied) sample.tokens.push_back(window[copied]);
  };
  for (size_t i = 0; i < keys.size(); ++i) {
    copy_to(places[i]);
    if (!sample.tokens.empty() && sample.tokens.back() != newline_) {
      sample.tokens.push_back(newline_);
      ++added;
    }
    keys[i].start = static_cast<int64_t>(sample.tokens.size());
    append_line(statement_before_, keys[i], statement_after_);
  }
  copy_to(window.size() - added);

  shuffle(keys, random);
  for (const Passkey& key : keys) {
    append_line(question_before_, key, question_after_);
    const auto count = static_cast<int64_t>(key.words.size()) + 1;
    sample.answers.push_back({static_cast<int64_t>(sample.tokens.size()) - count, count, key.ordinal,
                              static_cast<double>(key.start) / static_cast<double>(length)});
  }
  sample.tokens.push_back(end_of_text_);
  return sample;
}

Tokens PasskeyTask::asked_in_chat(const Sample& sample, const Answer& answer, const Tokens& before,
                                  const Tokens& after) const {
  Tokens tokens = before;
  const auto question_end = answer.first - static_cast<int64_t>(question_after_.size());
  tokens.insert(tokens.end(), sample.tokens.begin(), sample.tokens.begin() + question_end);
  for (const Tokens* piece : {&question_end_, &after, &answer_start_}) append(tokens, *piece);
  return tokens;
}

Sample plain_text(TokenView background, int64_t length, KeyedRandom& random) {
  const auto window = random_window(background, static_cast<size_t>(length), random);
  return {window.tokens(), {}, window.document_starts()};
}

}  // namespace flashmorph
