#include "core/config/reader.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <sstream>

namespace flashmorph::schema {
namespace {

std::string text_of(const YAML::Node& node) {
  if (node.IsScalar()) return "'" + node.Scalar() + "'";
  return node.IsSequence() ? "a list" : node.IsMap() ? "a map" : "nothing";
}

std::string text_of(double number) {
  std::ostringstream out;
  out.precision(15);
  out << number;
  return out.str();
}

// "2M", "0.5e6", "512"; nothing when it is not a number.
std::optional<double> number_of(const YAML::Node& node) {
  if (!node.IsScalar() || node.Scalar().empty()) return std::nullopt;
  std::string text = node.Scalar();
  double unit = 1.0;
  switch (text.back()) {
    case 'k': case 'K': unit = 1e3; break;
    case 'M': unit = 1e6; break;
    case 'G': unit = 1e9; break;
    default: break;
  }
  if (unit != 1.0) text.pop_back();
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(number)) return std::nullopt;
  return number * unit;
}

std::string range_of(const Rule& rule) {
  if (rule.most >= kMany) return rule.least > -kMany ? "at least " + text_of(rule.least) : "any";
  return "in [" + text_of(rule.least) + ", " + text_of(rule.most) + "]";
}

std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

Reader::Reader(const YAML::Node& node, std::string path, const std::set<std::string>& overridden, std::vector<Fault>& faults)
    : node_(node), path_(std::move(path)), overridden_(overridden), faults_(faults) {
  if (!node_.IsMap()) {
    faults_.push_back({path_.empty() ? "the file" : path_, "is " + text_of(node_) + ", expected a map of keys"});
    node_ = YAML::Node(YAML::NodeType::Map);
  }
}

YAML::Node Reader::take(const char* name) {
  known_.emplace_back(name);
  const YAML::Node& constant = node_;
  return constant[name];
}

std::string Reader::place(const std::string& name, const YAML::Node& node) const {
  const std::string path = path_of(name);
  if (overridden_.contains(path)) return path + " (--set)";
  return path + " (line " + std::to_string(node.Mark().line + 1) + ")";
}

void Reader::reject_unknown() {
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "?";
    const std::string where = place(name, entry.first);
    if (!seen.insert(name).second) faults_.push_back({where, "stands here a second time"});
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    const std::string near = nearest_word(name, known_);
    faults_.push_back({where, near.empty() ? "no such key; known here: " + listed(known_) : "no such key; did you mean " + near + "?"});
  }
}

void Reader::read(const YAML::Node& node, const std::string& place, std::string& value, const Rule& rule) {
  if (!node.IsScalar() || node.Scalar().empty()) {
    faults_.push_back({place, "is " + text_of(node) + ", expected a text"});
  } else if (!rule.choices.empty() && std::find(rule.choices.begin(), rule.choices.end(), node.Scalar()) == rule.choices.end()) {
    faults_.push_back({place, "is '" + node.Scalar() + "', expected one of: " + listed(rule.choices)});
  } else {
    value = node.Scalar();
  }
}

void Reader::read(const YAML::Node& node, const std::string& place, double& value, const Rule& rule) {
  const auto number = number_of(node);
  if (!number) {
    faults_.push_back({place, "is " + text_of(node) + ", expected a number"});
  } else if (*number < rule.least || *number > rule.most) {
    faults_.push_back({place, "is " + node.Scalar() + ", expected a number " + range_of(rule)});
  } else {
    value = *number;
  }
}

void Reader::read(const YAML::Node& node, const std::string& place, int64_t& value, const Rule& rule) {
  const auto number = number_of(node);
  if (!number || *number != std::floor(*number)) {
    faults_.push_back({place, "is " + text_of(node) + ", expected a whole number"});
    return;
  }
  double checked = *number;
  read(node, place, checked, rule);
  value = static_cast<int64_t>(std::clamp(checked, -kMany, kMany));
}

void Reader::read(const YAML::Node& node, const std::string& place, bool& value, const Rule&) {
  if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false")) {
    faults_.push_back({place, "is " + text_of(node) + ", expected true or false"});
  } else {
    value = node.Scalar() == "true";
  }
}

void Reader::read(const YAML::Node& node, const std::string& place, Range& value, const Rule& rule) {
  if (node.IsSequence() && node.size() == 2) {
    read(node[0], place, value.min, rule);
    read(node[1], place, value.max, rule);
  } else if (node.IsScalar()) {
    read(node, place, value.min, rule);
    value.max = value.min;
  } else {
    faults_.push_back({place, "is " + text_of(node) + ", expected a number or [min, max]"});
  }
  if (value.min > value.max)
    faults_.push_back({place, "is [" + std::to_string(value.min) + ", " + std::to_string(value.max) + "], expected min <= max"});
}

void Reader::read(const YAML::Node& node, const std::string& place, std::vector<int64_t>& value, const Rule& rule) {
  if (!node.IsScalar() && (!node.IsSequence() || node.size() == 0)) {
    faults_.push_back({place, "is " + text_of(node) + ", expected a number or a list of numbers"});
    return;
  }
  value.assign(node.IsScalar() ? 1 : node.size(), 0);
  for (size_t i = 0; i < value.size(); ++i) read(node.IsScalar() ? node : node[i], place, value[i], rule);
}

void Reader::read(const YAML::Node& node, const std::string& place, std::vector<std::string>& value, const Rule& rule) {
  if (!node.IsSequence()) {
    faults_.push_back({place, "is " + text_of(node) + ", expected a list"});
    return;
  }
  value.assign(node.size(), "");
  for (size_t i = 0; i < node.size(); ++i) {
    read(node[i], place, value[i], rule);
    if (std::count(value.begin(), value.begin() + static_cast<std::ptrdiff_t>(i), value[i]) > 0 && !value[i].empty())
      faults_.push_back({place, "names " + value[i] + " twice"});
  }
}

}  // namespace flashmorph::schema
