#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/split_pattern.h"

namespace flashmorph {

// Cuts normalized text into the pre-tokens inside which the encoding merges, by the steps of a pre_tokenizer one after
// the other: Split, Digits, Punctuation, Whitespace, WhitespaceSplit, ByteLevel (with GPT-2's pattern or none) and, as
// the first step only, Metaspace; or none at all.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  PreTokenizer(const nlohmann::json& description, const std::string& where);  // BadInput for anything else

  bool byte_level() const { return byte_level_; }   // pre-tokens are read as bytes, and may end inside a character
  bool cuts() const { return !patterns_.empty(); }  // else a stretch is one pre-token

  // What stands for a part of a stretch (of text between added tokens) before it is cut: Metaspace's replacement for
  // spaces, and the prefix when the part `begins` the stretch (for some, only when it is the `first` of all).
  std::string prepared(std::string text, bool begins, bool first) const;

  // The pre-tokens of a stretch's text in order; only those that later parts cannot change. Returns the bytes that are
  // done with.
  size_t cut(std::string_view text, bool ends, std::vector<std::string_view>& pre_tokens) const;

 private:
  enum class Prefix { kNone, kFirst, kEach };
  void read_step(const nlohmann::json& step, const std::string& where);
  void read_split(const nlohmann::json& step, const std::string& where);
  void read_byte_level(const nlohmann::json& step, const std::string& where);
  void read_metaspace(const nlohmann::json& step, const std::string& where);

  bool byte_level_ = false;
  std::string space_ = " ";  // what a space and the prefix are written as
  Prefix prefix_ = Prefix::kNone;
  std::vector<SplitPattern> patterns_;  // applied one after the other
  size_t of_bytes_ = SIZE_MAX;          // from this pattern on they read bytes in GPT-2's alphabet, not text
};

}  // namespace flashmorph
