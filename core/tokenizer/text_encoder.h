#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/tokenizer/tokenizer.h"
#include "core/tokenizer/tokenizer_file.h"

namespace flashmorph {

// Encodes documents of any length, each given in parts: the tokens are those of the whole text, the memory that of a
// part (or of the longest stretch without a space, or the longest pre-token, where that is more). Not for two threads.
class TextEncoder {
 public:
  // Reads `part` bytes at once: enough for the fixed costs, little enough for the processor's cache.
  explicit TextEncoder(const Tokenizer& tokenizer, size_t part = 1 << 16);

  void write(std::string_view text, std::vector<int32_t>& tokens);  // appends the tokens that are certain by now
  void finish(std::vector<int32_t>& tokens);                        // the document ends; the next may begin

  // Where the encoder stands in a document: with this, the text after the first `taken()` bytes gives the rest.
  struct State {
    bool first = true;  // no text and no token yet
    bool normalizes_anew =
        true;            // the next text begins a stretch for the normalizer: nothing or an added token came last
    bool begins = true;  // the same for the pre-tokenizer
    std::string held;    // text ready to be cut that later text may still change
  };
  const State& state() const { return state_; }
  uint64_t taken() const { return taken_; }  // bytes of the document
  void go_on_from(State state, uint64_t taken = 0) {
    state_ = std::move(state);
    taken_ = taken;
  }

 private:
  void encode_part(std::string_view text, bool last, std::vector<int32_t>& tokens);
  void append_added(int32_t id, std::vector<int32_t>& tokens);
  void encode_stretch(std::string_view text, std::vector<int32_t>& tokens);
  void encode_held(bool ends, std::vector<int32_t>& tokens);
  void append_pre_token(std::string_view text, std::vector<int32_t>& tokens);
  size_t append_parts(std::string_view text, bool ends, std::vector<int32_t>& tokens);
  void append_word(std::string_view word, std::vector<int32_t>& tokens);

  Tokenizer tokenizer_;
  const TokenizerFile& file_;
  const size_t part_;
  State state_;
  std::string unread_;  // given, not yet safe to read
  size_t wanted_;       // bytes of it that are worth another look
  uint64_t taken_ = 0;

  // The ids of a word; the same few words make up most of any text.
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> known_words_;
};

}  // namespace flashmorph
