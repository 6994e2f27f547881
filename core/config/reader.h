#pragma once

#include <yaml-cpp/yaml.h>

#include <set>
#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/config/schema.h"

namespace flashmorph::schema {

// Reads a YAML tree into the structs and collects every fault: unknown and doubled keys, types, ranges, choices.
class Reader {
 public:
  Reader(const YAML::Node& node, std::string path, const std::set<std::string>& overridden, std::vector<Fault>& faults);

  template <class Section>
  void section(const char* name, Section& section) {
    const YAML::Node child = take(name);
    if (!child.IsDefined() || child.IsNull()) {
      Reader inner(YAML::Node(YAML::NodeType::Map), path_of(name), overridden_, faults_);
      visit(inner, section);  // so that missing required keys are named
      return;
    }
    Reader inner(child, path_of(name), overridden_, faults_);
    visit(inner, section);
    inner.reject_unknown();
  }

  template <class Value>
  void key(const char* name, Value& value, const Rule& rule) {
    const YAML::Node child = take(name);
    if (!child.IsDefined()) {
      if (rule.required) faults_.push_back({path_of(name), std::string("is missing: ") + rule.meaning});
      return;
    }
    read(child, place(name, child), value, rule);
  }

  void reject_unknown();

 private:
  YAML::Node take(const char* name);
  std::string path_of(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  std::string place(const std::string& name, const YAML::Node& node) const;  // "stages.align.tokens (line 7)"

  void read(const YAML::Node& node, const std::string& place, std::string& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, int64_t& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, double& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, bool& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, Range& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<int64_t>& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<std::string>& value, const Rule& rule);

  YAML::Node node_;
  std::string path_;
  const std::set<std::string>& overridden_;
  std::vector<Fault>& faults_;
  std::vector<std::string> known_;
};

}  // namespace flashmorph::schema
