#include "core/config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>

#include "core/config/writer.h"

namespace flashmorph::schema {
namespace {

constexpr size_t kLongestName = 255;  // bytes, on common file systems

std::string text_of(const YAML::Node& node) {
  if (node.IsScalar()) return "'" + node.Scalar() + "'";
  return node.IsSequence() ? "a list" : node.IsMap() ? "a map" : "nothing";
}

std::string name_of(const YAML::Node& key) { return key.IsScalar() ? key.Scalar() : "?"; }

YAML::Node value_of(const YAML::Node& map, const std::string& name) {
  return map[name];
}  // [] on const inserts nothing

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

void Reader::enter(const char* section) {
  const Found found = take(section);
  EachKey::enter(section);
  open(found.node, found.from_set);  // also when the section is missing, so that its required keys are named
}

// A list is read as the map of its items by their numbers.
size_t Reader::enter_list(const char* name, size_t count) {
  const Found found = take(name);
  EachKey::enter(name);
  YAML::Node items(YAML::NodeType::Map);
  if (found.node.IsDefined() && !found.node.IsNull()) {
    if (!found.node.IsSequence() || found.node.size() == 0) {
      input_.fault(input_.where(path_of("")), fmt::format("is {}, expected a list of maps", text_of(found.node)));
    } else {
      count = found.node.size();
      for (size_t i = 0; i < count; ++i) items[std::to_string(i)] = found.node[i];
    }
  }
  open(items, found.from_set);
  return count;
}

void Reader::leave() {
  close();
  EachKey::leave();
}

void Reader::require(bool holds, const std::vector<std::string>& keys, const std::string& fault) {
  if (holds) return;
  broken_.push_back({{}, fault});
  for (const std::string& key : keys) broken_.back().paths.push_back(path_of(key));
}

// Behind all faults of single keys.
void Reader::tell_broken_rules() {
  for (const auto& [paths, fault] : broken_)
    if (std::ranges::all_of(paths, [&](const std::string& path) { return input_.is_sound(path); }))
      input_.fault(input_.where(paths[0]), fault);
}

void Reader::open(const YAML::Node& node, bool from_set) {
  maps_.push_back({YAML::Node(YAML::NodeType::Map), from_set});
  if (!node.IsDefined() || node.IsNull()) return;
  if (!node.IsMap()) {
    maps_.back().is_map = false;
    return input_.fault(input_.where(path_of("")), fmt::format("is {}, expected a map of keys", text_of(node)));
  }
  maps_.back().node.reset(node);
  if (const YAML::Node source = value_of(node, "<<"); source.IsDefined()) merge(source, 0);
}

// YAML's merge key: what the map does not say itself is as in the maps of `<<`, one or a list, the first before others.
void Reader::merge(const YAML::Node& source, int depth) {
  constexpr int kDeepest = 20;  // an alias may lead back to where it stands
  if (source.IsSequence() && depth < kDeepest) {
    for (const YAML::Node& one : source) merge(one, depth + 1);
    return;
  }
  if (!source.IsMap() || depth == kDeepest)
    return input_.fault(place_of(path_of("<<"), source, maps_.back().from_set), "expected a map or a list of maps");
  for (const auto& entry : source)
    if (const std::string name = name_of(entry.first); name != "<<")
      maps_.back().merged.emplace_back(name, entry.second);
  if (const YAML::Node further = value_of(source, "<<"); further.IsDefined()) merge(further, depth + 1);
}

Reader::Found Reader::take(const std::string& name) {
  const std::string path = path_of(name);
  Map& map = maps_.back();
  map.known.push_back(name);
  input_.known.push_back(path);
  const auto override = input_.overrides.find(path);
  const bool from_set = map.from_set || override != input_.overrides.end();
  const YAML::Node own = value_of(map.node, name);
  const auto merged = std::ranges::find(map.merged, name, &std::pair<std::string, YAML::Node>::first);
  const bool is_merged = !own.IsDefined() && merged != map.merged.end();
  const YAML::Node node = override != input_.overrides.end() ? override->second : (is_merged ? merged->second : own);
  if (node.IsDefined()) input_.places[path] = place_of(path, node, from_set);
  return {node, from_set};
}

void Reader::close() {
  const Map& map = maps_.back();
  const auto require_known = [&](const std::string& name, const YAML::Node& at) {
    if (std::ranges::count(map.known, name) == 0)
      input_.fault(place_of(path_of(name), at, map.from_set), no_such_key(name, map.known));
  };
  std::set<std::string> seen;
  for (const auto& entry : map.node) {
    const std::string name = name_of(entry.first);
    if (!seen.insert(name).second)
      input_.fault(place_of(path_of(name), entry.first, map.from_set), "stands here a second time");
    if (name != "<<") require_known(name, entry.first);
  }
  for (const auto& [name, node] : map.merged) require_known(name, node);
  maps_.pop_back();
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
  value = rule.is_path ? path_meant_by(text, place) : text;
}

// As a shell would have it: a path is often copied from one. What cannot be meant is a fault.
std::string Reader::path_meant_by(const std::string& text, const std::string& place) {
  const auto variable = [&](const std::string& name) -> std::string {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) input_.fault(place, "is '" + text + "', but $" + name + " is not set");
    return value == nullptr ? "" : value;
  };
  std::string path;
  size_t at = 0;
  if (text[0] == '~') {
    if (text.size() > 1 && text[1] != '/')
      input_.fault(place, "is '" + text + "', expected ~/... or a whole path: other homes are not looked up");
    path = variable("HOME");
    at = 1;
  }
  for (size_t open = text.find("${", at); open != std::string::npos; open = text.find("${", at)) {
    const size_t close = text.find('}', open);
    if (close == std::string::npos) break;
    path += text.substr(at, open - at) + variable(text.substr(open + 2, close - open - 2));
    at = close + 1;
  }
  path += text.substr(at);
  for (const auto& part : std::filesystem::path(path))
    if (part.native().size() > kLongestName)
      input_.fault(place,
                   fmt::format("has a part of {} bytes, expected at most {}", part.native().size(), kLongestName));
  return path;
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
  const std::string text = node.IsScalar() ? node.Scalar() : "";
  const bool is_true = text == "true" || text == "True" || text == "TRUE";
  if (!is_true && text != "false" && text != "False" && text != "FALSE")
    return input_.fault(place, "is " + text_of(node) + ", expected true or false");
  value = is_true;
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
