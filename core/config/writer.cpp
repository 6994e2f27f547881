#include "core/config/writer.h"

#include <charconv>

namespace flashmorph::schema {
namespace {

template <class Values>
std::string list_of(const Values& values) {
  std::string text = "[";
  for (const auto& value : values) text += (text.size() == 1 ? "" : ", ") + yaml_of(value);
  return text + "]";
}

}  // namespace

std::string yaml_of(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

std::string yaml_of(int64_t value) { return std::to_string(value); }

std::string yaml_of(double value) {  // the shortest text that reads back as the same number
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

std::string yaml_of(bool value) { return value ? "true" : "false"; }

std::string yaml_of(const Range& value) { return list_of(std::vector<int64_t>{value.min, value.max}); }

std::string yaml_of(const std::vector<int64_t>& value) { return list_of(value); }

std::string yaml_of(const std::vector<std::string>& value) { return list_of(value); }

void Reference::row(const std::string& name, const std::string& value, const Rule& rule) {
  std::string meaning = rule.meaning;
  for (const std::string& choice : rule.choices) meaning += (&choice == rule.choices.data() ? ": " : ", ") + choice;
  text_ += "| `" + path_ + name + "` | " + value + " | " + meaning + " |\n";
}

}  // namespace flashmorph::schema
