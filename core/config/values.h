#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

// All keys with their values: from YAML, as YAML, and as what another run of the same keys may differ in.

// Reads a YAML into the fields that `keys` visits. BadInput with all its faults: unknown and doubled keys, types,
// ranges, choices, and what does not hold between keys. `set` holds "key.path=value", which count instead of the
// text's.
void read_yaml(const std::string& text, const std::string& file_name, const std::vector<std::string>& set,
               const std::function<void(KeyVisitor&)>& keys);

// Control characters as "\x0A": a fault is one line, and YAML folds a bare line break into a space.
std::string one_line(const std::string& text);

std::string yaml_of(const std::string& value);
std::string yaml_of(int64_t value);
std::string yaml_of(double value);
std::string yaml_of(bool value);
std::string yaml_of(const Range& value);
std::string yaml_of(const std::vector<int64_t>& value);
std::string yaml_of(const std::vector<std::string>& value);

// "in [1, 10]", "at least 0", "one of: head, hidden"; "" when anything will do.
std::string allowed_by(const Rule& rule);

struct KeyValue {
  std::string path;
  std::string value;  // as YAML
  Rule rule;
};

// In the order of the sections.
template <class Section>
std::vector<KeyValue> values_of(const Section& section) {
  struct Flat : KeyVisitor {
    std::vector<KeyValue> values;
    void visit(const std::string& path, Value value, const Rule& rule) override {
      values.push_back({path, std::visit([](const auto* field) { return yaml_of(*field); }, value), rule});
    }
  } flat;
  const_cast<Section&>(section).keys(flat);  // which changes nothing: this visitor does not read
  return flat.values;
}

// As a whole YAML, sections and lists spelled out; empty texts are left out.
std::string whole_yaml(const std::vector<KeyValue>& values);

// "path: value", a line a key that results depend on.
std::string result_keys(const std::vector<KeyValue>& values);

// A key that two configs give different values: its full path, and the values as YAML.
struct ChangedKey {
  std::string path;
  std::string before;
  std::string now;
  bool changes_result;
};

std::vector<ChangedKey> changed_keys(const std::vector<KeyValue>& before, const std::vector<KeyValue>& now);
template <class Section>
std::vector<ChangedKey> changed_keys(const Section& before, const Section& now) {
  return changed_keys(values_of(before), values_of(now));
}

// "stages.align.tokens: 16384 -> 32768; ..."
std::string text_of(const std::vector<ChangedKey>& changes);

}  // namespace flashmorph
