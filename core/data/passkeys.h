#pragma once

#include <cstdint>
#include <vector>

#include "core/base/random.h"
#include "core/data/token_view.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// One answer inside a sample: the words and the newline that ends them.
struct Answer {
  int64_t first;    // position of its first token
  int64_t count;    // its tokens
  int64_t ordinal;  // 0..9: which passkey was asked for
  double depth;     // where that passkey stands: its line's first token / tokens of the sample, in [0, 1)
};

struct Sample {
  std::vector<int32_t> tokens;                // exactly the asked length
  std::vector<Answer> answers;                // in the order asked; none in plain text
  std::vector<int64_t> document_starts = {};  // inside plain text of several documents, without 0
};

// Synthetic long-context recall: passkeys of random words at random lines of a background text, then a question for
// each in random order with its answer. Template: tests/data/passkey-teacher/README.md.
class PasskeyTask {
 public:
  static constexpr int64_t kMostPasskeys = 10;  // "first" ... "tenth"

  explicit PasskeyTask(const Tokenizer& tokenizer);  // BadInput when the tokenizer cannot write the template

  // `length` tokens: passkey lines inside a random window of `background`, the questions and answers, the end-of-text
  // token; one document, whatever the background was. Ordinals are drawn without repetition from all ten. BadInput when
  // they do not fit.
  Sample make(TokenView background, int64_t length, int64_t passkeys, int64_t words, KeyedRandom& random) const;

  // The tokens of a sample with no background at all.
  int64_t least_length(int64_t passkeys, int64_t words) const;

  // The tokens up to this answer as a chat has them: a message that ends with the question, between the texts that a
  // model's chat template puts around one, and the answer's beginning behind them.
  std::vector<int32_t> asked_in_chat(const Sample& sample, const Answer& answer, const std::vector<int32_t>& before,
                                     const std::vector<int32_t>& after) const;

  int32_t newline() const { return newline_; }
  int32_t end_of_text() const { return end_of_text_; }

 private:
  std::vector<std::vector<int32_t>> words_;     // " alpha" ... " zulu"
  std::vector<std::vector<int32_t>> ordinals_;  // " first" ... " tenth"
  std::vector<int32_t> statement_before_, statement_after_, question_before_, question_after_;
  std::vector<int32_t> question_end_, answer_start_;  // of question_after_, where a chat parts them
  int32_t newline_ = 0;
  int32_t end_of_text_ = 0;
};

// `length` tokens of plain text from a random place, with the documents in it.
Sample plain_text(TokenView background, int64_t length, KeyedRandom& random);

}  // namespace flashmorph
