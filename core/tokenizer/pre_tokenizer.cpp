#include "core/tokenizer/pre_tokenizer.h"

#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

PreTokenizer::PreTokenizer(const json& description, const std::string& where) {
  if (description.is_null()) return;
  const json one_step = json::array({description});
  const json& steps = part_of(description, "type") == "Sequence" ? part_of(description, "pretokenizers") : one_step;
  if (!steps.is_array() || steps.empty()) unsupported(where, description);
  for (size_t i = 0; i < steps.size(); ++i) read_step(steps[i], i + 1 == steps.size(), where);
}

void PreTokenizer::read_step(const json& step, bool last, const std::string& where) {
  const json &type = part_of(step, "type"), &regex = part_of(part_of(step, "pattern"), "Regex");
  const bool splits = type == "Split" && part_of(step, "behavior") == "Isolated" && part_of(step, "invert") != true;
  const bool adds_prefix = part_of(step, "add_prefix_space") != false;
  if (!last && splits && regex.is_string()) {
    patterns_.emplace_back(regex.get<std::string>(), where);
  } else if (last && type == "ByteLevel" && !(adds_prefix && cuts())) {
    byte_level_ = true;
    prefix_ = adds_prefix ? Prefix::kEach : Prefix::kNone;
    if (part_of(step, "use_regex") != false) patterns_.emplace_back(kGpt2Pattern, where);
  } else if (last && type == "Metaspace" && !cuts()) {
    read_metaspace(step, where);
  } else {
    unsupported(where, step);
  }
}

void PreTokenizer::read_metaspace(const json& step, const std::string& where) {
  const json &replacement = part_of(step, "replacement"), &scheme = part_of(step, "prepend_scheme"),
             &adds_prefix = part_of(step, "add_prefix_space");  // older than the scheme
  if (!replacement.is_string() || replacement == "") unsupported(where, step);
  space_ = replacement.get<std::string>();
  if (utf8_length(space_[0]) != space_.size() || std::string("\\[]^").find(space_) != std::string::npos ||
      (adds_prefix == false && scheme != "never"))
    unsupported(where, step);
  if (scheme.is_null() || scheme == "always")
    prefix_ = Prefix::kEach;
  else if (scheme == "first")
    prefix_ = Prefix::kFirst;
  else if (scheme != "never")
    unsupported(where, step);
  if (part_of(step, "split") != false) patterns_.emplace_back("[" + space_ + "][^" + space_ + "]*", where);
}

std::string PreTokenizer::prepared(std::string text, bool begins, bool first) const {
  if (space_ != " ") text = replaced(text, " ", space_);
  const bool wanted = begins && (prefix_ == Prefix::kEach || (prefix_ == Prefix::kFirst && first));
  if (wanted && !text.starts_with(space_)) text.insert(0, space_);
  return text;
}

size_t PreTokenizer::cut(std::string_view text, bool ends, std::vector<std::string_view>& pre_tokens) const {
  std::vector<std::string_view> pieces;
  const size_t done = patterns_.at(0).split(text, ends, pieces);
  for (size_t next = 1; next < patterns_.size(); ++next) {
    std::vector<std::string_view> finer;
    for (const std::string_view piece : pieces) patterns_[next].split(piece, true, finer);
    pieces = std::move(finer);
  }
  pre_tokens.insert(pre_tokens.end(), pieces.begin(), pieces.end());
  return done;
}

}  // namespace flashmorph
