#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/random.h"
#include "core/data/passkeys.h"
#include "core/data/token_view.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// The line that is repeated where a task hides something in noise.
inline constexpr const char* kNoise =
    "The kettle is warm. The road is long. The rain is soft. On we walk, and home once more.\n";

// What the tasks' samples are made of: a text in pieces, its words, and the tokenizer that says how much fits.
class TaskMaterial {
 public:
  // `chat`: what a model's chat template makes of the message "{}", for the passkey tasks; "": they are asked plainly.
  // BadInput when the text has too few lines or words, or the chat no place for the message.
  TaskMaterial(const Tokenizer& tokenizer, std::string_view text, std::string_view chat = "");

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const std::vector<std::string>& pieces() const { return pieces_; }  // lines or sentences, with what ends them
  const std::vector<std::string>& words() const { return words_; }    // each once: 4 to 9 lower-case letters
  TokenView tokens() const { return tokens_->all(); }
  const PasskeyTask& passkeys() const { return *passkeys_; }
  const std::vector<int32_t>& before_message() const { return before_message_; }  // in a chat
  const std::vector<int32_t>& after_message() const { return after_message_; }

 private:
  Tokenizer tokenizer_;
  std::vector<std::string> pieces_, words_;
  std::shared_ptr<const TokenList> tokens_;
  std::shared_ptr<const PasskeyTask> passkeys_;
  std::vector<int32_t> before_message_, after_message_;
};

// The tokens of text(n) for the largest n that leaves `most` of `length` tokens, up to a few units: the text grows with
// its units about evenly. BadInput naming the task when not even one fits.
std::vector<int32_t> filled(const TaskMaterial& material, const std::string& task, int64_t length, int64_t most,
                            const std::function<std::string(int64_t units)>& text);

// `count` different ones of [0, size), in random order.
std::vector<size_t> drawn(size_t count, size_t size, KeyedRandom& random);

std::string random_number(int digits, KeyedRandom& random);  // without a leading zero

}  // namespace flashmorph
