#pragma once

#include <yaml-cpp/yaml.h>

#include <map>
#include <string>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph::schema {

// Control characters as "\x0A": a fault is one line, and YAML folds a bare line break into a space.
std::string one_line(const std::string& text);

// The YAML of one run while it is read: its tree, what --set puts in place of its values, where each key stands, and
// every fault so far.
struct YamlInput {
  YAML::Node root;
  std::map<std::string, YAML::Node> overrides;  // by key path; beside the tree, where an alias would share the change
  std::vector<std::string> known;               // paths of the keys and sections met, in the table's order
  std::map<std::string, std::string> places;    // of those that were given: "stages.align.tokens (line 7)"
  std::vector<Fault> faults;

  YamlInput(const std::string& text, const std::string& file_name, const std::vector<std::string>& set);

  void fault(const std::string& where, const std::string& what) { faults.push_back({one_line(where), one_line(what)}); }
  std::string where(const std::string& path) const;  // its place, or the bare path of a default
  bool is_sound(const std::string& path) const;      // no fault stands there
  void reject_unknown_overrides();

 private:
  void add_override(const std::string& entry);
};

// "no such key; did you mean tokens?", or the known ones.
std::string no_such_key(const std::string& name, const std::vector<std::string>& known);

}  // namespace flashmorph::schema
