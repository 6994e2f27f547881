#include "core/tokenizer/pre_tokenizer.h"

#include <map>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/oniguruma.h"
#include "core/tokenizer/unicode_classes.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

MatchBehavior behavior_of(const json& step, const std::string& where) {
  static const std::map<std::string, MatchBehavior> names = {
      {"Isolated", MatchBehavior::kIsolated},
      {"Removed", MatchBehavior::kRemoved},
      {"MergedWithPrevious", MatchBehavior::kMergedWithPrevious},
      {"MergedWithNext", MatchBehavior::kMergedWithNext},
      {"Contiguous", MatchBehavior::kContiguous},
  };
  const json& name = part_of(step, "behavior");
  const auto found = name.is_string() ? names.find(name.get<std::string>()) : names.end();
  if (found == names.end()) unsupported(where, step);
  return found->second;
}

// The pieces of `bytes` that the pattern makes of their characters in GPT-2's alphabet.
void split_in_alphabet(const SplitPattern& pattern, std::string_view bytes, std::vector<std::string_view>& pieces) {
  std::string written;
  std::vector<size_t> starts;  // of each byte's character, and the end
  for (const char byte : bytes) {
    starts.push_back(written.size());
    written += character_of_byte()[static_cast<unsigned char>(byte)];
  }
  starts.push_back(written.size());
  std::vector<std::string_view> found;
  pattern.split(written, true, found);
  size_t first = 0;
  const auto byte_at = [&](const char* place) {
    const auto offset = static_cast<size_t>(place - written.data());
    while (starts[first] < offset) ++first;
    return first;
  };
  for (const std::string_view piece : found) {
    const size_t begin = byte_at(piece.data());
    pieces.push_back(bytes.substr(begin, byte_at(piece.data() + piece.size()) - begin));
  }
}

}  // namespace

PreTokenizer::PreTokenizer(const json& description, const std::string& where) {
  if (!description.is_null()) read_step(description, where);
}

void PreTokenizer::read_step(const json& step, const std::string& where) {
  const json& type = part_of(step, "type");
  const auto add = [&](const std::string& pcre2, MatchBehavior behavior, bool inverts = false) {
    patterns_.emplace_back(pcre2, behavior, inverts, where);
  };
  if (type == "Sequence" && part_of(step, "pretokenizers").is_array()) {
    for (const json& inner : part_of(step, "pretokenizers")) read_step(inner, where);
  } else if (type == "Split") {
    read_split(step, where);
  } else if (type == "Digits") {
    const bool one_by_one = part_of(step, "individual_digits") == true;
    add(numeric_class(), one_by_one ? MatchBehavior::kIsolated : MatchBehavior::kContiguous);
  } else if (type == "Punctuation") {
    add(punctuation_class(), part_of(step, "behavior").is_null() ? MatchBehavior::kIsolated : behavior_of(step, where));
  } else if (type == "Whitespace") {
    const std::string word = word_class_content();
    add("[" + word + "]+|[^" + kWhiteSpace + word + "]+", MatchBehavior::kRemoved, true);
  } else if (type == "WhitespaceSplit") {
    add(kWhiteSpace, MatchBehavior::kRemoved);
  } else if (type == "ByteLevel" && !byte_level_ && space_ == " ") {
    read_byte_level(step, where);
  } else if (type == "Metaspace" && !cuts() && !byte_level_ && space_ == " ") {
    read_metaspace(step, where);
  } else {
    unsupported(where, step);
  }
}

void PreTokenizer::read_split(const json& step, const std::string& where) {
  const json& pattern = part_of(step, "pattern");
  const json &regex = part_of(pattern, "Regex"), &text = part_of(pattern, "String");
  if (!regex.is_string() && (!text.is_string() || text == "")) unsupported(where, step);
  patterns_.emplace_back(
      regex.is_string() ? pcre2_of(regex.get<std::string>(), where) : literal_pattern(text.get<std::string>()),
      behavior_of(step, where), part_of(step, "invert") == true, where);
}

void PreTokenizer::read_byte_level(const json& step, const std::string& where) {
  const bool adds_prefix = part_of(step, "add_prefix_space") != false;
  if (adds_prefix && cuts()) unsupported(where, step);  // it would put one in front of every piece
  byte_level_ = true;
  prefix_ = adds_prefix ? Prefix::kEach : Prefix::kNone;
  if (part_of(step, "use_regex") != false)
    patterns_.emplace_back(pcre2_of(kGpt2Pattern, where), MatchBehavior::kIsolated, false, where);
  of_bytes_ = patterns_.size();
}

void PreTokenizer::read_metaspace(const json& step, const std::string& where) {
  const json &replacement = part_of(step, "replacement"), &scheme = part_of(step, "prepend_scheme"),
             &adds_prefix = part_of(step, "add_prefix_space");  // older than the scheme
  if (!replacement.is_string() || replacement == "") unsupported(where, step);
  space_ = replacement.get<std::string>();
  if (utf8_length(space_[0]) != space_.size() || (adds_prefix == false && scheme != "never")) unsupported(where, step);
  if (scheme.is_null() || scheme == "always")
    prefix_ = Prefix::kEach;
  else if (scheme == "first")
    prefix_ = Prefix::kFirst;
  else if (scheme != "never")
    unsupported(where, step);
  if (part_of(step, "split") != false)
    patterns_.emplace_back(literal_pattern(space_), MatchBehavior::kMergedWithNext, false, where);
}

std::string PreTokenizer::prepared(std::string text, bool begins, bool first) const {
  if (space_ != " ") text = replaced(text, " ", space_);
  const bool wanted = begins && (prefix_ == Prefix::kEach || (prefix_ == Prefix::kFirst && first));
  if (wanted && !text.starts_with(space_)) text.insert(0, space_);
  return text;
}

size_t PreTokenizer::cut(std::string_view text, bool ends, std::vector<std::string_view>& pre_tokens) const {
  if (of_bytes_ == 0 && !ends) return 0;
  std::vector<std::string_view> pieces = {text};
  size_t done = text.size();
  for (size_t i = 0; i < patterns_.size(); ++i) {
    std::vector<std::string_view> finer;
    for (const std::string_view piece : pieces) {
      if (i >= of_bytes_)
        split_in_alphabet(patterns_[i], piece, finer);
      else if (i == 0)
        done = patterns_[0].split(piece, ends, finer);
      else
        patterns_[i].split(piece, true, finer);
    }
    pieces = std::move(finer);
  }
  pre_tokens.insert(pre_tokens.end(), pieces.begin(), pieces.end());
  return done;
}

}  // namespace flashmorph
