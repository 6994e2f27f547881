#pragma once

#include <string>
#include <vector>

#include "core/config/schema.h"

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
class Writer {
 public:
  template <class Section>
  void section(const char* name, Section& section) {
    text_ += std::string(indent_, ' ') + name + ":\n";
    indent_ += 2;
    visit(*this, section);
    indent_ -= 2;
  }
  template <class Value>
  void key(const char* name, const Value& value, const Rule&) {
    const std::string written = yaml_of(value);
    if (written != "\"\"") text_ += std::string(indent_, ' ') + name + ": " + written + "\n";
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  size_t indent_ = 0;
};

// What visitors have that name a key in full: "stages.align.tokens".
template <class Visitor>
class PathVisitor {
 public:
  template <class Section>
  void section(const char* name, Section& section) {
    const std::string outer = path_;
    path_ += std::string(name) + ".";
    visit(static_cast<Visitor&>(*this), section);
    path_ = outer;
  }

 protected:
  std::string path_of(const char* name) const { return path_ + name; }

 private:
  std::string path_;
};

// Every key with its default and meaning, as a Markdown page.
class Reference : public PathVisitor<Reference> {
 public:
  template <class Value>
  void key(const char* name, const Value& value, const Rule& rule) {
    row(path_of(name), rule.required ? "required" : "`" + yaml_of(value) + "`", rule);
  }
  const std::string& text() const { return text_; }

 private:
  void row(const std::string& path, const std::string& value, const Rule& rule);

  std::string text_ =
      "# The YAML of a run\n\nWhole numbers may end in K, M or G (2M = 2000000). A key that is not listed here is "
      "refused.\n\n"
      "| key | default | meaning | allowed |\n|---|---|---|---|\n";
};

}  // namespace flashmorph::schema
