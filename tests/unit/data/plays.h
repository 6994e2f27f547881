#pragma once

#include <vector>

#include "core/data/corpus.h"
#include "core/data/passkeys.h"

namespace flashmorph::test {

inline constexpr const char* kTokenizer = "tests/data/passkey-teacher/tokenizer.json";
inline constexpr const char* kPlays = "tests/data/text/tinyshakespeare.txt";

// The teacher's tokenizer, template and text, read once a program.
inline const Tokenizer& tokenizer() {
  static const Tokenizer read = Tokenizer::open(kTokenizer);
  return read;
}

inline const PasskeyTask& task() {
  static const PasskeyTask made(tokenizer());
  return made;
}

inline const Corpus& plays() {
  static const Corpus read = Corpus::open({.text = kPlays}, tokenizer(), 4096);
  return read;
}

// The parts of a corpus of one text.
inline TokenView training(const Corpus& corpus) { return corpus.training().texts().at(0).tokens; }
inline TokenView held_out(const Corpus& corpus) { return corpus.held_out().texts().at(0).tokens; }

}  // namespace flashmorph::test
