#include "core/tokenizer/normalizer.h"

#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
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
  const json& type = part_of(description, "type");
  if (type == "Sequence" && part_of(description, "normalizers").is_array()) {
    for (const json& step : part_of(description, "normalizers")) add(step, where);
  } else if (type == "NFC") {
    if (!steps_.empty() && steps_.back().kind != Kind::kNfc)  // what they put in may compose with what follows
      throw BadInput(where, "has NFC after Prepend or Replace, which is not supported");
    steps_.push_back({Kind::kNfc, "", ""});
  } else if (const json& front = part_of(description, "prepend"); type == "Prepend" && front.is_string()) {
    steps_.push_back({Kind::kPrepend, "", front.get<std::string>()});
  } else if (const json& from = part_of(part_of(description, "pattern"), "String");
             type == "Replace" && is_one_character(from) && part_of(description, "content").is_string()) {
    steps_.push_back({Kind::kReplace, from.get<std::string>(), part_of(description, "content").get<std::string>()});
  } else {
    unsupported(where, description);
  }
}

std::string Normalizer::normalized(std::string text, bool begins) const {
  for (const Step& step : steps_) {
    if (step.kind == Kind::kNfc) text = nfc(text);
    if (step.kind == Kind::kPrepend && begins && !text.empty()) text.insert(0, step.to);
    if (step.kind == Kind::kReplace) text = replaced(text, step.from, step.to);
  }
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
