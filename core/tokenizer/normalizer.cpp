#include "core/tokenizer/normalizer.h"

#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/oniguruma.h"
#include "core/tokenizer/split_pattern.h"
#include "core/tokenizer/unicode_classes.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using nlohmann::json;

bool is_one_character(const json& text) {
  if (!text.is_string() || text == "") return false;
  const auto& bytes = text.get_ref<const std::string&>();
  return utf8_length(bytes[0]) == bytes.size();
}

}  // namespace

Normalizer::Normalizer(const json& description, const std::string& where) {
  if (!description.is_null()) add(description, where);
}

void Normalizer::add(const json& description, const std::string& where) {
  static const std::map<std::string, NormalForm> forms = {{"NFC", NormalForm::kC},
                                                          {"NFD", NormalForm::kD},
                                                          {"NFKC", NormalForm::kCompatibleC},
                                                          {"NFKD", NormalForm::kCompatibleD}};
  const json& type = part_of(description, "type");
  const auto form = type.is_string() ? forms.find(type.get<std::string>()) : forms.end();
  if (type == "Sequence" && part_of(description, "normalizers").is_array()) {
    for (const json& step : part_of(description, "normalizers")) add(step, where);
  } else if (form != forms.end()) {
    if (changes_text_) in_parts_ = false;
    if (form->first.starts_with("NFK")) makes_spaces_ = true;
    steps_.push_back([to = form->second](std::string text, bool) { return normal_form(text, to); });
  } else if (type == "Lowercase") {
    steps_.push_back([](std::string text, bool) { return lower_case(text); });
  } else if (type == "StripAccents") {
    changes_text_ = true;
    const auto accents = std::make_shared<const SplitPattern>(accent_class(), MatchBehavior::kIsolated, false, where);
    steps_.push_back([accents](std::string text, bool) { return accents->replaced(text, ""); });
  } else if (type == "Strip") {
    in_parts_ = false;
    const bool left = part_of(description, "strip_left") == true, right = part_of(description, "strip_right") == true;
    steps_.push_back([left, right](std::string text, bool) {
      if (right) text.resize(text.size() - trailing_space(text));
      return left ? text.substr(leading_space(text)) : text;
    });
  } else if (const json& front = part_of(description, "prepend"); type == "Prepend" && front.is_string()) {
    changes_text_ = true;
    steps_.push_back([front = front.get<std::string>()](std::string text, bool begins) {
      return begins && !text.empty() ? front + text : text;
    });
  } else if (type == "Replace" && part_of(description, "content").is_string()) {
    add_replacement(description, where);
  } else {
    unsupported(where, description);
  }
}

void Normalizer::add_replacement(const json& description, const std::string& where) {
  const json& pattern = part_of(description, "pattern");
  const json &from = part_of(pattern, "String"), &regex = part_of(pattern, "Regex");
  const auto to = part_of(description, "content").get<std::string>();
  changes_text_ = true;
  if (!is_one_character(from)) in_parts_ = false;
  if (from.is_string() && from != "") {
    steps_.push_back([from = from.get<std::string>(), to](std::string text, bool) { return replaced(text, from, to); });
  } else if (regex.is_string()) {
    const auto compiled = std::make_shared<const SplitPattern>(pcre2_of(regex.get<std::string>(), where),
                                                               MatchBehavior::kIsolated, false, where);
    steps_.push_back([compiled, to](std::string text, bool) { return compiled->replaced(text, to); });
  } else {
    unsupported(where, description);
  }
}

std::string Normalizer::normalized(std::string text, bool begins) const {
  for (const Step& step : steps_) text = step(std::move(text), begins);
  return text;
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
  std::string result;
  result.reserve(text.size());
  size_t copied = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, copied)) {
    result.append(text, copied, at - copied).append(to);
    copied = at + from.size();
  }
  return result.append(text, copied);
}

}  // namespace flashmorph
