#pragma once

#include <string>
#include <vector>

#include "core/config/schema.h"
#include "core/config/yaml_input.h"

namespace flashmorph::schema {

// Reads one map of the YAML tree into its struct; faults go to the input: unknown and doubled keys, types, ranges,
// choices.
class Reader {
 public:
  explicit Reader(YamlInput& input) : Reader(input, "", input.root, false) {}

  template <class Section>
  void section(const char* name, Section& section) {
    const Found found = take(name);
    Reader inner(input_, path_of(name), found.node, found.from_set);
    visit(inner, section);  // also when the section is missing, so that its required keys are named
    inner.reject_unknown();
  }

  template <class Value>
  void key(const char* name, Value& value, const Rule& rule) {
    const Found found = take(name);
    if (found.node.IsDefined()) {
      read(found.node, input_.where(path_of(name)), value, rule);
    } else if (rule.required) {
      input_.fault(path_of(name), std::string("is missing: ") + rule.meaning);
    }
  }

  template <class Value>
  void inherit(const Value& from, const std::vector<Value*>& to) {
    for (Value* one : to) *one = from;
  }

  void reject_unknown();

 private:
  struct Found {
    YAML::Node node;
    bool from_set;
  };

  Reader(YamlInput& input, const std::string& path, const YAML::Node& node, bool from_set);
  Found take(const std::string& name);  // the key's value: of --set, else of the file; remembers that it is known
  std::string path_of(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

  void read(const YAML::Node& node, const std::string& place, std::string& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, int64_t& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, double& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, bool& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, Range& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<int64_t>& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<std::string>& value, const Rule& rule);
  bool is_allowed(const std::string& found, double number, const std::string& place, const Rule& rule);

  YamlInput& input_;
  std::string path_;
  YAML::Node node_;
  bool from_set_;  // the map itself came from --set, so its lines are not the file's
  std::vector<std::string> known_;
};

}  // namespace flashmorph::schema
