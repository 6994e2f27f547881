#include "core/config/values.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <sstream>

#include "core/base/listed.h"

namespace flashmorph {
namespace {

template <class Value>
std::string list_of(const std::vector<Value>& values) {
  std::vector<std::string> words;
  for (const Value& value : values) words.push_back(yaml_of(value));
  return "[" + listed(words) + "]";
}

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  std::istringstream in(path);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}

const std::string kNone = "none";

std::string value_at(const std::string& path, const std::vector<KeyValue>& values) {
  const auto found = std::ranges::find(values, path, &KeyValue::path);
  return found == values.end() ? kNone : found->value;
}

}  // namespace

std::string one_line(const std::string& text) {
  std::string line;
  for (const unsigned char c : text)
    line += std::iscntrl(c) ? fmt::format("\\x{:02X}", c) : std::string(1, static_cast<char>(c));
  return line;
}

std::string yaml_of(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return one_line(text) + "\"";
}

std::string yaml_of(double value) {  // the shortest text that reads back as the same number
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

std::string yaml_of(int64_t value) { return std::to_string(value); }
std::string yaml_of(bool value) { return value ? "true" : "false"; }
std::string yaml_of(const Range& value) { return list_of(std::vector<int64_t>{value.min, value.max}); }
std::string yaml_of(const std::vector<int64_t>& value) { return list_of(value); }
std::string yaml_of(const std::vector<std::string>& value) { return list_of(value); }

std::string allowed_by(const Rule& rule) {
  if (!rule.choices.empty()) return "one of: " + listed(rule.choices);
  if (rule.most < kMany) return "in [" + yaml_of(rule.least) + ", " + yaml_of(rule.most) + "]";
  return rule.least > -kMany ? "at least " + yaml_of(rule.least) : "";
}

std::string whole_yaml(const std::vector<KeyValue>& values) {
  std::string text;
  std::vector<std::string> sections;  // that are open
  for (const KeyValue& one : values) {
    if (one.value == "\"\"") continue;
    std::vector<std::string> path = parts_of(one.path);
    const std::string name = path.back() + ": " + one.value + "\n";
    path.pop_back();
    size_t depth = std::ranges::mismatch(sections, path).in2 - path.begin();
    for (sections = path; depth < path.size(); ++depth)
      text += std::string(2 * depth, ' ') + (std::isdigit(path[depth][0]) ? "-" : path[depth] + ":") + "\n";
    text += std::string(2 * depth, ' ') + name;
  }
  return text;
}

std::string result_keys(const std::vector<KeyValue>& values) {
  std::string text;
  for (const auto& [path, value, rule] : values)
    if (rule.changes_results) text += path + ": " + value + "\n";
  return text;
}

std::vector<ChangedKey> changed_keys(const std::vector<KeyValue>& before, const std::vector<KeyValue>& now) {
  std::vector<ChangedKey> changes;
  for (const auto& [path, value, rule] : now)
    if (const std::string old = value_at(path, before); old != value)
      changes.push_back({path, old, value, rule.changes_results});
  for (const auto& [path, value, rule] : before)  // of a list that was longer
    if (value_at(path, now) == kNone) changes.push_back({path, value, kNone, rule.changes_results});
  return changes;
}

std::string text_of(const std::vector<ChangedKey>& changes) {
  std::vector<std::string> texts;
  for (const ChangedKey& change : changes)
    texts.push_back(fmt::format("{}: {} -> {}", change.path, change.before, change.now));
  return listed(texts, "; ");
}

}  // namespace flashmorph
