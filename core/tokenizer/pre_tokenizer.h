#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/split_pattern.h"

namespace flashmorph {

// Cuts normalized text into the pre-tokens inside which the encoding merges: Split patterns before ByteLevel, ByteLevel
// with GPT-2's own pattern, Metaspace, or none.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  PreTokenizer(const nlohmann::json& description, const std::string& where);  // BadInput for anything else

  bool byte_level() const { return byte_level_; }   // pre-tokens are read as bytes
  bool cuts() const { return !patterns_.empty(); }  // else a stretch is one pre-token

  // What stands for a part of a stretch (of text between added tokens) before it is cut: Metaspace's replacement for
  // spaces, and the prefix when the part `begins` the stretch (for some, only when it is the `first` of all).
  std::string prepared(std::string text, bool begins, bool first) const;

  // The pre-tokens of a stretch's text in order; only those that later parts cannot change. Returns their bytes.
  size_t cut(std::string_view text, bool ends, std::vector<std::string_view>& pre_tokens) const;

 private:
  enum class Prefix { kNone, kFirst, kEach };
  void read_step(const nlohmann::json& step, bool last, const std::string& where);
  void read_metaspace(const nlohmann::json& step, const std::string& where);

  bool byte_level_ = false;
  std::string space_ = " ";  // what a space and the prefix are written as
  Prefix prefix_ = Prefix::kNone;
  std::vector<SplitPattern> patterns_;  // applied one after the other
};

}  // namespace flashmorph
