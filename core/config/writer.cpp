#include "core/config/writer.h"

#include <fmt/format.h>

#include <charconv>

#include "core/base/listed.h"
#include "core/config/yaml_input.h"

namespace flashmorph::schema {
namespace {

template <class Value>
std::string list_of(const std::vector<Value>& values) {
  std::vector<std::string> words;
  for (const Value& value : values) words.push_back(yaml_of(value));
  return "[" + listed(words) + "]";
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

std::string choices_of(const Rule& rule) { return "one of: " + listed(rule.choices); }

void Reference::row(const std::string& path, const std::string& value, const Rule& rule) {
  const std::string allowed = rule.choices.empty() ? range_of(rule) : choices_of(rule);
  rows_ += fmt::format("| `{}` | {} | {} | {} | {} |\n", path, value, rule.meaning, allowed,
                       rule.changes_results ? "" : "yes");
}

std::string Reference::text() const {
  return "# The YAML of a run\n\n"
         "Whole numbers may end in K, M or G (2M = 2000000). true and false are those of YAML 1.2 (yes and no are "
         "texts). Merge keys (`<<: *name`) are known. A key that is not listed here is refused.\n\n"
         "In paths `~` at the start is the home folder and `${NAME}` a variable of the environment; what is relative "
         "after that is relative to the folder in which the program is started, not to the YAML's.\n\n"
         "*may change*: a run that is there goes on with another value of this key; with another of any other key it "
         "is another run. The teacher and the texts may lie elsewhere then, with the same bytes: their hashes are "
         "compared.\n\n"
         "| key | default | meaning | allowed | may change |\n|---|---|---|---|---|\n" +
         rows_;
}

}  // namespace flashmorph::schema
