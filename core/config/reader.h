#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/config/keys.h"
#include "core/config/yaml_input.h"

namespace flashmorph::schema {

// Reads the YAML's maps into their structs; faults go to the input: unknown and doubled keys, types, ranges, choices.
class Reader : public EachKey<Reader> {
 public:
  explicit Reader(YamlInput& input) : input_(input) {}

  template <class Config>
  void read(Config& config) {
    open(input_.root, false);
    config.keys(*this);
    close();
    tell_broken_rules();
  }

  bool reads() const override { return true; }
  void require(bool holds, const std::vector<std::string>& keys, const std::string& fault) override;

  template <class Value>
  void each(const char* name, Value& value, const Rule& rule) {
    const Found found = take(name);
    if (found.node.IsDefined()) {
      read(found.node, input_.where(path_of(name)), value, rule);
    } else if (rule.required && maps_.back().is_map) {
      input_.fault(path_of(name), "is missing: " + rule.meaning);
    }
  }

 protected:
  void enter(const char* section) override;
  size_t enter_list(const char* name, size_t count) override;
  void leave() override;

 private:
  struct Found {
    YAML::Node node;
    bool from_set;
  };
  struct Map {  // that is being read
    YAML::Node node;
    bool from_set;       // it came from --set, so its lines are not the file's
    bool is_map = true;  // else that is the fault
    std::vector<std::string> known = {};
    std::vector<std::pair<std::string, YAML::Node>> merged = {};  // by `<<`, the nearest first
  };

  struct BrokenRule {
    std::vector<std::string> paths;
    std::string fault;
  };

  void open(const YAML::Node& node, bool from_set);
  void close();
  void merge(const YAML::Node& source, int depth);
  Found take(const std::string& name);  // the key's value: of --set, else of the file; remembers that it is known

  void read(const YAML::Node& node, const std::string& place, std::string& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, int64_t& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, double& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, bool& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, Range& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<int64_t>& value, const Rule& rule);
  void read(const YAML::Node& node, const std::string& place, std::vector<std::string>& value, const Rule& rule);
  std::string path_meant_by(const std::string& text, const std::string& place);
  bool is_allowed(const std::string& found, double number, const std::string& place, const Rule& rule);

  void tell_broken_rules();

  YamlInput& input_;
  std::vector<BrokenRule> broken_;
  std::vector<Map> maps_;  // from the root to where we are
};

}  // namespace flashmorph::schema
