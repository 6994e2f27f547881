#include "core/config/reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>

#include "core/config/writer.h"

namespace flashmorph::schema {
namespace {

std::string text_of(const YAML::Node& node) {
  if (node.IsScalar()) return "'" + node.Scalar() + "'";
  return node.IsSequence() ? "a list" : node.IsMap() ? "a map" : "nothing";
}

std::string place_of(const std::string& path, const YAML::Node& node, bool from_set) {
  return path + (from_set ? " (--set)" : " (line " + std::to_string(node.Mark().line + 1) + ")");
}

std::optional<double> number_of(const std::string& text) {
  double number = 0.0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || !std::isfinite(number)) return std::nullopt;
  return number;
}

// "512", "2M", "0.5e6". The suffix becomes an exponent, not a factor: 1.005 * 1e6 is not a whole number.
std::optional<double> whole_number_of(std::string text) {
  for (const auto& [suffix, exponent] : {std::pair{'K', "e3"}, {'M', "e6"}, {'G', "e9"}}) {
    if (text.empty() || text.back() != suffix) continue;
    text.pop_back();
    text += exponent;
    break;
  }
  const auto number = number_of(text);
  return number && *number == std::floor(*number) ? number : std::nullopt;
}

}  // namespace

Reader::Reader(YamlInput& input, const std::string& path, const YAML::Node& node, bool from_set)
    : input_(input), path_(path), node_(YAML::NodeType::Map), from_set_(from_set) {
  if (!node.IsDefined() || node.IsNull()) return;
  if (node.IsMap()) {
    node_.reset(node);
  } else {
    input_.fault(input_.where(path_), "is " + text_of(node) + ", expected a map of keys");
  }
}

Reader::Found Reader::take(const std::string& name) {
  const std::string path = path_of(name);
  known_.push_back(name);
  input_.known.push_back(path);
  const auto override = input_.overrides.find(path);
  const bool from_set = from_set_ || override != input_.overrides.end();
  const YAML::Node& map = node_;  // [] on a const node does not insert
  const YAML::Node node = override != input_.overrides.end() ? override->second : map[name];
  if (node.IsDefined()) input_.places[path] = place_of(path, node, from_set);
  return {node, from_set};
}

void Reader::reject_unknown() {
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "?";
    const std::string place = place_of(path_of(name), entry.first, from_set_);
    if (!seen.insert(name).second) input_.fault(place, "stands here a second time");
    if (std::find(known_.begin(), known_.end(), name) == known_.end()) input_.fault(place, no_such_key(name, known_));
  }
}

bool Reader::is_allowed(const std::string& found, double number, const std::string& place, const Rule& rule) {
  if (number >= rule.least && number <= rule.most) return true;
  const bool is_beyond_all = rule.most >= kMany && number > rule.most;
  input_.fault(place, "is " + found + ", expected a number " +
                          (is_beyond_all ? "at most " + yaml_of(rule.most) : range_of(rule)));
  return false;
}

void Reader::read(const YAML::Node& node, const std::string& place, std::string& value, const Rule& rule) {
  if (!node.IsScalar() || node.Scalar().empty())
    return input_.fault(place, "is " + text_of(node) + ", expected a text");
  const std::string& text = node.Scalar();
  if (!rule.choices.empty() && std::find(rule.choices.begin(), rule.choices.end(), text) == rule.choices.end())
    return input_.fault(place, "is '" + text + "', expected " + choices_of(rule));
  value = text;
}

void Reader::read(const YAML::Node& node, const std::string& place, double& value, const Rule& rule) {
  const auto number = node.IsScalar() ? number_of(node.Scalar()) : std::nullopt;
  if (!number) return input_.fault(place, "is " + text_of(node) + ", expected a number");
  if (is_allowed(node.Scalar(), *number, place, rule)) value = *number;
}

void Reader::read(const YAML::Node& node, const std::string& place, int64_t& value, const Rule& rule) {
  const auto number = node.IsScalar() ? whole_number_of(node.Scalar()) : std::nullopt;
  if (!number) return input_.fault(place, "is " + text_of(node) + ", expected a whole number");
  if (is_allowed(node.Scalar(), *number, place, rule)) value = static_cast<int64_t>(*number);
}

void Reader::read(const YAML::Node& node, const std::string& place, bool& value, const Rule&) {
  if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false"))
    return input_.fault(place, "is " + text_of(node) + ", expected true or false");
  value = node.Scalar() == "true";
}

void Reader::read(const YAML::Node& node, const std::string& place, Range& value, const Rule& rule) {
  const bool is_pair = node.IsSequence() && node.size() == 2;
  if (!is_pair && !node.IsScalar())
    return input_.fault(place, "is " + text_of(node) + ", expected a number or [min, max]");
  Range found = value;
  const size_t faults = input_.faults.size();
  read(is_pair ? node[0] : node, place, found.min, rule);
  if (is_pair) read(node[1], place, found.max, rule);
  if (input_.faults.size() > faults) return;
  if (!is_pair) found.max = found.min;
  if (found.min > found.max) return input_.fault(place, "is " + yaml_of(found) + ", expected min <= max");
  value = found;
}

void Reader::read(const YAML::Node& node, const std::string& place, std::vector<int64_t>& value, const Rule& rule) {
  if (!node.IsScalar() && (!node.IsSequence() || (node.size() == 0 && !rule.may_be_empty)))
    return input_.fault(place, "is " + text_of(node) + ", expected a number or a list of numbers");
  value.assign(node.IsScalar() ? 1 : node.size(), 0);
  for (size_t i = 0; i < value.size(); ++i) read(node.IsScalar() ? node : node[i], place, value[i], rule);
}

void Reader::read(const YAML::Node& node, const std::string& place, std::vector<std::string>& value, const Rule& rule) {
  if (!node.IsSequence()) return input_.fault(place, "is " + text_of(node) + ", expected a list");
  value.clear();
  for (const YAML::Node& element : node) {
    std::string word;
    read(element, place, word, rule);
    if (word.empty()) continue;  // a fault already
    if (std::find(value.begin(), value.end(), word) != value.end()) input_.fault(place, "names " + word + " twice");
    value.push_back(word);
  }
}

}  // namespace flashmorph::schema
