#pragma once

#include <string>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph::schema {

std::string yaml_of(const std::string& value);
std::string yaml_of(int64_t value);
std::string yaml_of(double value);
std::string yaml_of(bool value);
std::string yaml_of(const Range& value);
std::string yaml_of(const std::vector<int64_t>& value);
std::string yaml_of(const std::vector<std::string>& value);

std::string range_of(const Rule& rule);    // "in [1, 10]", "at least 0"; "" when any number will do
std::string choices_of(const Rule& rule);  // "one of: head, hidden"

// Every key with its value, as YAML.
class Writer : public EachKey<Writer> {
 public:
  template <class Value>
  void each(const char* name, const Value& value, const Rule&) {
    const std::string written = yaml_of(value);
    if (written != "\"\"") text_ += std::string(indent_, ' ') + name + ": " + written + "\n";
  }
  const std::string& text() const { return text_; }

 protected:
  void enter(const char* section) override { indent(std::string(section) + ":"); }
  size_t enter_list(const char* name, size_t count) override {
    if (count == 0) indent_ += 2;  // nothing is written
    if (count > 0) enter(name);
    return count;
  }
  void enter_item(const char*) override { indent("-"); }
  void leave() override { indent_ -= 2; }

 private:
  void indent(const std::string& line) {
    text_ += std::string(indent_, ' ') + line + "\n";
    indent_ += 2;
  }

  std::string text_;
  size_t indent_ = 0;
};

// Every key with its default and meaning, as a Markdown page.
class Reference : public EachKey<Reference> {
 public:
  template <class Value>
  void each(const char* name, const Value& value, const Rule& rule) {
    row(path_of(name), rule.required ? "required" : "`" + yaml_of(value) + "`", rule);
  }
  std::string text() const;

 protected:
  size_t enter_list(const char* name, size_t) override {
    enter(name);
    return 1;  // the first stands for all
  }

 private:
  void row(const std::string& path, const std::string& value, const Rule& rule);

  std::string rows_;
};

// Every key's path and value, in the order of the sections.
struct KeyValue {
  std::string path;
  std::string value;  // as YAML
  bool changes_results;
};
class Flat : public EachKey<Flat> {
 public:
  template <class Value>
  void each(const char* name, const Value& value, const Rule& rule) {
    values.push_back({path_of(name), yaml_of(value), rule.changes_results});
  }

  std::vector<KeyValue> values;
};

template <class Section>
std::vector<KeyValue> values_of(const Section& section) {
  Flat flat;
  const_cast<Section&>(section).keys(flat);  // which changes nothing: this visitor does not read
  return flat.values;
}

}  // namespace flashmorph::schema
