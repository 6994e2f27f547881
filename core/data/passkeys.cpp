#include "core/data/passkeys.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr const char* kWords[] = {"alpha", "bravo",   "charlie", "delta",  "echo",  "foxtrot", "golf",   "hotel",  "india",
                                  "juliett", "kilo",  "lima",    "mike",   "november", "oscar", "papa",  "quebec", "romeo",
                                  "sierra", "tango",  "uniform", "victor", "whiskey", "xray",   "yankee", "zulu"};
constexpr const char* kOrdinals[] = {"first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"};

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

struct Passkey {
  int64_t ordinal;
  Tokens words;
  int64_t start = 0;  // of its statement, in the finished sample
};

// `count` places of the window right after a newline, in order; anywhere when it has too few.
std::vector<size_t> line_starts(std::span<const int32_t> window, size_t count, int32_t newline, KeyedRandom& random) {
  std::vector<size_t> places;
  for (size_t i = 0; i < window.size(); ++i)
    if (window[i] == newline) places.push_back(i + 1);
  if (places.size() < count) {
    places.resize(window.size() + 1);
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
  for (const char* word : kWords) words_.push_back(tokenizer.encode(std::string(" ") + word));
  for (const char* ordinal : kOrdinals) ordinals_.push_back(tokenizer.encode(std::string(" ") + ordinal));
  statement_before_ = tokenizer.encode("Remember this sequence of words, it is the");
  statement_after_ = tokenizer.encode(" passkey to the vault:");
  question_before_ = tokenizer.encode("\nWhat is the");
  question_after_ = tokenizer.encode(" passkey to the vault?\nPasskey:");
  const Tokens newline = tokenizer.encode("\n");
  if (newline.size() != 1) throw BadInput("tokenizer.json", "writes a newline as " + std::to_string(newline.size()) + " tokens, expected one");
  newline_ = newline[0];
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>"})
    if (tokenizer.id_of(name) >= 0) {
      end_of_text_ = tokenizer.id_of(name);
      return;
    }
  throw BadInput("tokenizer.json", "has no end-of-text token (<|endoftext|>, <|end_of_text|> or </s>)");
}

int64_t PasskeyTask::least_length(int64_t passkeys, int64_t words) const {
  const size_t answer = static_cast<size_t>(words) * longest(words_) + 1;
  const size_t statement = statement_before_.size() + longest(ordinals_) + statement_after_.size() + answer + 1;
  const size_t question = question_before_.size() + longest(ordinals_) + question_after_.size() + answer;
  return passkeys * static_cast<int64_t>(statement + question) + 1;
}

Sample PasskeyTask::make(std::span<const int32_t> background, int64_t length, int64_t passkeys, int64_t words,
                         KeyedRandom& random) const {
  if (passkeys < 1 || passkeys > kMostPasskeys || least_length(passkeys, words) > length)
    throw BadInput("passkeys", std::to_string(passkeys) + " passkeys of " + std::to_string(words) + " words do not fit " +
                                   std::to_string(length) + " tokens");
  std::vector<int64_t> ordinals(kMostPasskeys);
  std::iota(ordinals.begin(), ordinals.end(), 0);
  shuffle(ordinals, random);
  std::vector<Passkey> keys;
  int64_t used = 1;  // the end of text
  for (int64_t i = 0; i < passkeys; ++i) {
    Passkey key{ordinals[i], {}};
    for (int64_t w = 0; w < words; ++w) append(key.words, words_[random.below(words_.size())]);
    const size_t named = ordinals_[key.ordinal].size() + key.words.size() + 1;
    used += static_cast<int64_t>(statement_before_.size() + statement_after_.size() + question_before_.size() +
                                 question_after_.size() + 2 * named);
    keys.push_back(std::move(key));
  }

  // A statement that does not follow a newline gets one, so room for it is kept and given back at the window's end.
  const size_t room = static_cast<size_t>(length - used);
  const size_t start = background.size() > room ? random.below(background.size() - room + 1) : 0;
  const auto window = background.subspan(start, std::min(room, background.size()));
  const std::vector<size_t> places = line_starts(window, keys.size(), newline_, random);

  Sample sample;
  size_t copied = 0, extra = 0;
  const auto copy_to = [&](size_t end) {
    for (; copied < end; ++copied) sample.tokens.push_back(window[copied]);
  };
  for (size_t i = 0; i < keys.size(); ++i) {
    copy_to(std::min(places[i], window.size() - std::min(window.size(), extra)));
    if (!sample.tokens.empty() && sample.tokens.back() != newline_ && extra + copied < window.size()) {
      sample.tokens.push_back(newline_);
      ++extra;
    }
    keys[i].start = static_cast<int64_t>(sample.tokens.size());
    append(sample.tokens, statement_before_);
    append(sample.tokens, ordinals_[keys[i].ordinal]);
    append(sample.tokens, statement_after_);
    append(sample.tokens, keys[i].words);
    sample.tokens.push_back(newline_);
  }
  copy_to(window.size() - std::min(extra, window.size()));

  shuffle(keys, random);
  for (const Passkey& key : keys) {
    append(sample.tokens, question_before_);
    append(sample.tokens, ordinals_[key.ordinal]);
    append(sample.tokens, question_after_);
    sample.answers.push_back({static_cast<int64_t>(sample.tokens.size()), static_cast<int64_t>(key.words.size()) + 1,
                              key.ordinal, static_cast<double>(key.start) / static_cast<double>(length)});
    append(sample.tokens, key.words);
    sample.tokens.push_back(newline_);
  }
  sample.tokens.resize(static_cast<size_t>(length), end_of_text_);
  return sample;
}

Sample plain_text(std::span<const int32_t> background, int64_t length, KeyedRandom& random) {
  const size_t start = random.below(background.size() - static_cast<size_t>(length) + 1);
  const auto window = background.subspan(start, static_cast<size_t>(length));
  return {{window.begin(), window.end()}, {}};
}

}  // namespace flashmorph
