#include "core/config/writer.h"

#include <charconv>

#include "core/config/yaml_input.h"

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
  return one_line(text) + "\"";
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

std::string range_of(const Rule& rule) {
  if (rule.most < kMany) return "in [" + yaml_of(rule.least) + ", " + yaml_of(rule.most) + "]";
  return rule.least > -kMany ? "at least " + yaml_of(rule.least) : "";
}

std::string choices_of(const Rule& rule) {
  const std::string why = rule.why;
  return "one of: " + listed(rule.choices) + (why.empty() ? "" : " (" + why + ")");
}

void Reference::row(const std::string& path, const std::string& value, const Rule& rule) {
  const std::string allowed = rule.choices.empty() ? range_of(rule) : choices_of(rule);
  text_ += "| `" + path + "` | " + value + " | " + rule.meaning + " | " + allowed + " |\n";
}

}  // namespace flashmorph::schema
