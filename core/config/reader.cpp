#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/config/values.h"

namespace flashmorph {
namespace {

constexpr size_t kLongestName = 255;  // bytes, on common file systems

std::string line_of(const YAML::Mark& mark) { return " (line " + std::to_string(mark.line + 1) + ")"; }

YAML::Node parse(const std::string& text, const std::string& file_name) {
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(text);
  } catch (const YAML::Exception& error) {
    throw BadInput(file_name + (error.mark.is_null() ? "" : line_of(error.mark)), "is not YAML: " + error.msg);
  }
  if (documents.size() > 1)
    throw BadInput(file_name, "holds " + std::to_string(documents.size()) + " YAML documents, expected one");
  if (documents.empty() || documents[0].IsNull()) throw BadInput(file_name, "is empty; docs/yaml.md lists the keys");
  if (!documents[0].IsMap()) throw BadInput(file_name, "is not a map of keys; docs/yaml.md lists them");
  return documents[0];
}

std::string text_of(const YAML::Node& node) {
  if (node.IsScalar()) return "'" + node.Scalar() + "'";
  return node.IsSequence() ? "a list" : node.IsMap() ? "a map" : "nothing";
}

std::string name_of(const YAML::Node& key) { return key.IsScalar() ? key.Scalar() : "?"; }

std::string below(const std::string& section, const std::string& name) {
  return section.empty() ? name : section + "." + name;
}

// The names right below a section.
std::vector<std::string> names_below(const std::string& section, const std::vector<std::string>& paths) {
  const std::string prefix = below(section, "");
  std::vector<std::string> names;
  for (const std::string& path : paths)
    if (path.starts_with(prefix) && path.find('.', prefix.size()) == std::string::npos)
      names.push_back(path.substr(prefix.size()));
  return names;
}

// "no such key; did you mean tokens?", or the known ones.
std::string no_such_key(const std::string& name, const std::vector<std::string>& known) {
  const std::string near = nearest_word(name, known);
  return "no such key; " + (near.empty() ? "known here: " + listed(known) : "did you mean " + near + "?");
}

std::optional<double> number_of(const std::string& text) {
  double number = 0.0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || !std::isfinite(number)) return std::nullopt;
  return number;
}

// "512", "2M", "0.5e6". The suffix becomes an exponent, not a factor: 1.005 * 1e6 is not a whole number.
std::optional<double> whole_number_of(const std::string& text) {
  const size_t suffix = text.empty() ? std::string::npos : std::string("KMG").find(text.back());
  const auto number = suffix == std::string::npos
                          ? number_of(text)
                          : number_of(text.substr(0, text.size() - 1) + "e" + std::to_string(3 * (suffix + 1)));
  return number && *number == std::floor(*number) ? number : std::nullopt;
}

// The value of one key; what is wrong with it goes to `fault`.
struct ValueReader {
  const Rule& rule;
  const std::function<void(const std::string& what)>& fault;

  void read(const YAML::Node& node, std::string& value) const {
    if (!node.IsScalar() || node.Scalar().empty()) return fault("is " + text_of(node) + ", expected a text");
    const std::string& text = node.Scalar();
    if (!rule.choices.empty() && std::ranges::count(rule.choices, text) == 0)
      return fault("is '" + text + "', expected " + allowed_by(rule));
    value = rule.is_path ? path_meant_by(text) : text;
  }

  void read(const YAML::Node& node, double& value) const {
    if (const auto number = allowed(node, number_of, "a number")) value = *number;
  }

  void read(const YAML::Node& node, int64_t& value) const {
    if (const auto number = allowed(node, whole_number_of, "a whole number")) value = static_cast<int64_t>(*number);
  }

  void read(const YAML::Node& node, bool& value) const {
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    const bool is_true = text == "true" || text == "True" || text == "TRUE";
    if (!is_true && text != "false" && text != "False" && text != "FALSE")
      return fault("is " + text_of(node) + ", expected true or false");
    value = is_true;
  }

  void read(const YAML::Node& node, Range& value) const {
    const bool is_pair = node.IsSequence() && node.size() == 2;
    if (!is_pair && !node.IsScalar()) return fault("is " + text_of(node) + ", expected a number or [min, max]");
    const auto min = allowed(is_pair ? node[0] : node, whole_number_of, "a whole number");
    const auto max = is_pair ? allowed(node[1], whole_number_of, "a whole number") : min;
    if (!min || !max) return;
    const Range found = {static_cast<int64_t>(*min), static_cast<int64_t>(*max)};
    if (found.min > found.max) return fault("is " + yaml_of(found) + ", expected min <= max");
    value = found;
  }

  void read(const YAML::Node& node, std::vector<int64_t>& value) const {
    if (!node.IsScalar() && (!node.IsSequence() || (node.size() == 0 && !rule.may_be_empty)))
      return fault("is " + text_of(node) + ", expected a number or a list of numbers");
    value.assign(node.IsScalar() ? 1 : node.size(), 0);
    for (size_t i = 0; i < value.size(); ++i) read(node.IsScalar() ? node : node[i], value[i]);
  }

  void read(const YAML::Node& node, std::vector<std::string>& value) const {
    if (!node.IsSequence()) return fault("is " + text_of(node) + ", expected a list");
    value.clear();
    for (const YAML::Node& element : node) {
      std::string word;
      read(element, word);
      if (word.empty()) continue;  // a fault already
      if (std::ranges::count(value, word) > 0) fault("names " + word + " twice");
      value.push_back(word);
    }
  }

 private:
  template <class Parse>
  std::optional<double> allowed(const YAML::Node& node, const Parse& parse, const char* expected) const {
    const auto number = node.IsScalar() ? parse(node.Scalar()) : std::nullopt;
    if (!number) fault("is " + text_of(node) + ", expected " + expected);
    if (!number || (*number >= rule.least && *number <= rule.most)) return number;
    const bool is_beyond_all = rule.most >= kMany && *number > rule.most;
    fault("is " + node.Scalar() + ", expected a number " +
          (is_beyond_all ? "at most " + yaml_of(rule.most) : allowed_by(rule)));
    return std::nullopt;
  }

  // As a shell would have it: a path is often copied from one. What cannot be meant is a fault.
  std::string path_meant_by(const std::string& text) const {
    const auto variable = [&](const std::string& name) -> std::string {
      const char* value = std::getenv(name.c_str());
      if (value == nullptr) fault("is '" + text + "', but $" + name + " is not set");
      return value == nullptr ? "" : value;
    };
    std::string path;
    size_t at = 0;
    if (text[0] == '~') {
      if (text.size() > 1 && text[1] != '/')
        fault("is '" + text + "', expected ~/... or a whole path: other homes are not looked up");
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
        fault(fmt::format("has a part of {} bytes, expected at most {}", part.native().size(), kLongestName));
    return path;
  }
};

// Goes through the YAML's maps with the keys. --set's values stand beside its tree, where an alias would share them.
class Reader : public KeyVisitor {
 public:
  Reader(const YAML::Node& root, const std::vector<std::string>& set) {
    for (const std::string& entry : set) add_override(entry);
    open("", root, /*is_list=*/false);
  }

  void finish() {
    leave();
    for (const auto& [paths, what] : broken_)  // behind all faults of single keys
      if (std::ranges::all_of(paths, [&](const std::string& path) { return is_sound(path); })) fault(paths[0], what);
    reject_unknown_overrides();
    if (!faults_.empty()) throw BadInput(faults_);
  }

  bool reads() const override { return true; }

  void require(bool holds, const std::vector<std::string>& keys, const std::string& what) override {
    if (holds) return;
    broken_.push_back({{}, what});
    for (const std::string& key : keys) broken_.back().first.push_back(path_of(key));
  }

 protected:
  void visit(const std::string& path, Value value, const Rule& rule) override {
    const YAML::Node given = take(path);
    const std::function<void(const std::string&)> at_fault = [&](const std::string& what) { fault(path, what); };
    if (given.IsDefined())
      std::visit([&](auto* field) { ValueReader{rule, at_fault}.read(given, *field); }, value);
    else if (rule.required && maps_.back().is_map)
      at_fault("is missing: " + rule.meaning);
  }

  // Also when the section is missing, so that its required keys are named.
  void enter(const std::string& section, bool is_list) override { open(section, take(section), is_list); }

  size_t items(size_t count) override { return maps_.back().entries.empty() ? count : maps_.back().entries.size(); }

  void leave() override {
    const Map map = maps_.back();
    maps_.pop_back();
    const std::vector<std::string> known = names_below(map.path, known_);
    std::set<std::string> seen;
    for (const Entry& entry : map.entries) {
      const std::string where = place_of(below(map.path, entry.name), entry.at);
      if (!entry.is_merged && !seen.insert(entry.name).second) add_fault(where, "stands here a second time");
      if (entry.name != "<<" && std::ranges::count(known, entry.name) == 0)
        add_fault(where, no_such_key(entry.name, known));
    }
  }

 private:
  struct Entry {
    std::string name;
    YAML::Node at;  // whose line faults name
    YAML::Node value;
    bool is_merged;
  };
  struct Map {  // that is being read, or a list by its numbers
    std::string path;
    bool is_map = true;               // else that is the fault
    std::vector<Entry> entries = {};  // its own, then those merged by `<<`, the nearest first
  };

  void open(const std::string& path, const YAML::Node& found, bool is_list) {
    Map& map = maps_.emplace_back(Map{path});
    if (!found.IsDefined() || found.IsNull()) return;
    map.is_map = is_list ? found.IsSequence() && found.size() > 0 : found.IsMap();
    if (!map.is_map)
      return fault(path, "is " + text_of(found) + ", expected " + (is_list ? "a list of maps" : "a map of keys"));
    if (is_list)
      for (const YAML::Node& one : found) map.entries.push_back({std::to_string(map.entries.size()), one, one, false});
    else
      for (const auto& entry : found) map.entries.push_back({name_of(entry.first), entry.first, entry.second, false});
    if (const YAML::Node source = found["<<"]; source.IsDefined()) merge(source, 0);
  }

  // YAML's merge key: what the map does not say itself is as in the maps of `<<`, one or a list, the first before
  // others.
  void merge(const YAML::Node& source, int depth) {
    constexpr int kDeepest = 20;  // an alias may lead back to where it stands
    Map& map = maps_.back();
    if (source.IsSequence() && depth < kDeepest) {
      for (const YAML::Node& one : source) merge(one, depth + 1);
      return;
    }
    if (!source.IsMap() || depth == kDeepest)
      return add_fault(place_of(below(map.path, "<<"), source), "expected a map or a list of maps");
    for (const auto& entry : source)
      if (const std::string name = name_of(entry.first); name != "<<")
        map.entries.push_back({name, entry.second, entry.second, true});
    if (const YAML::Node further = source["<<"]; further.IsDefined()) merge(further, depth + 1);
  }

  // What is given for a key or section: by --set, else by its map. Remembers that it is known.
  YAML::Node take(const std::string& path) {
    known_.push_back(path);
    const std::vector<Entry>& entries = maps_.back().entries;
    const auto set = overrides_.find(path);
    const auto own = std::ranges::find(entries, path.substr(path.rfind('.') + 1), &Entry::name);
    const YAML::Node found = own == entries.end() ? YAML::Node(YAML::NodeType::Undefined) : own->value;
    const YAML::Node given = set == overrides_.end() ? found : set->second;
    if (given.IsDefined()) places_[path] = place_of(path, given);
    return given;
  }

  void add_override(const std::string& entry) {
    const size_t equals = entry.find('=');
    if (equals == 0 || equals == std::string::npos)
      return add_fault("--set " + entry, "expected key=value, for example budget.full_layers=4");
    const std::string path = entry.substr(0, equals);
    try {
      overrides_.insert_or_assign(path, YAML::Load(entry.substr(equals + 1)));
    } catch (const YAML::Exception& error) {
      add_fault(path + " (--set)", "is not YAML: " + error.msg);
    }
  }

  void reject_unknown_overrides() {
    for (const auto& [path, value] : overrides_) {
      std::string section = path, name;
      while (!section.empty() && std::ranges::count(known_, section) == 0) {  // up to the part that exists
        const size_t dot = section.rfind('.');
        name = section.substr(dot + 1);
        section = dot == std::string::npos ? "" : section.substr(0, dot);
      }
      if (section == path) continue;
      const auto siblings = names_below(section, known_);
      add_fault(path + " (--set)",
                siblings.empty() ? "no such key; " + section + " is a value" : no_such_key(name, siblings));
    }
  }

  std::string place_of(const std::string& path, const YAML::Node& node) const {
    const bool is_set = std::ranges::any_of(
        overrides_, [&](const auto& set) { return path == set.first || path.starts_with(set.first + "."); });
    return path + (is_set ? " (--set)" : line_of(node.Mark()));  // what --set gives has no line of the file
  }
  std::string where(const std::string& path) const {  // its place, or the bare path of a default
    const auto place = places_.find(path);
    return place == places_.end() ? path : place->second;
  }
  bool is_sound(const std::string& path) const {  // no fault stands there
    return std::ranges::count(faults_, one_line(where(path)), &Fault::where) == 0;
  }
  void fault(const std::string& path, const std::string& what) { add_fault(where(path), what); }
  void add_fault(const std::string& where, const std::string& what) {
    faults_.push_back({one_line(where), one_line(what)});
  }

  std::map<std::string, YAML::Node> overrides_;
  std::vector<Map> maps_;                      // from the root to where we are
  std::vector<std::string> known_;             // paths of the keys and sections met, in their order
  std::map<std::string, std::string> places_;  // of those that were given: "stages.align.tokens (line 7)"
  std::vector<std::pair<std::vector<std::string>, std::string>>
      broken_;  // rules between keys: paths, and what is wrong
  std::vector<Fault> faults_;
};

}  // namespace

void read_yaml(const std::string& text, const std::string& file_name, const std::vector<std::string>& set,
               const std::function<void(KeyVisitor&)>& keys) {
  Reader reader(parse(text, file_name), set);
  keys(reader);
  reader.finish();
}

}  // namespace flashmorph
