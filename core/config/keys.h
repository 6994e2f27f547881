#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

namespace flashmorph {

// How a section of the YAML says its keys, once, below its fields:
//   void keys(KeyVisitor& v) { v.key("seed", seed, {"all randomness follows from it", 0, kMany}); ... }
// Whatever has to know all keys visits them: reading, writing, the reference page, the differences between two runs.

struct Range {  // inclusive; in YAML a number, or [min, max]
  int64_t min;
  int64_t max;
};

constexpr double kMany = 1e15;  // "no limit" for whole numbers: a double still holds each of them exactly

struct Rule {
  std::string meaning;  // with its unit
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};
  bool required = false;
  bool may_be_empty = false;    // a list
  bool is_path = false;         // of a file or folder: ~ and ${VAR} stand for what they are in a shell
  bool changes_results = true;  // otherwise a run goes on with another value
};

// For keys that say where or how the work is done, not what comes of it.
inline Rule without_effect(Rule rule) {
  rule.changes_results = false;
  return rule;
}

class KeyVisitor {
 public:
  virtual ~KeyVisitor() = default;

  // A key's value, of one of these types.
  using Value =
      std::variant<std::string*, int64_t*, double*, bool*, Range*, std::vector<int64_t>*, std::vector<std::string>*>;
  virtual void visit(const char* name, Value value, const Rule& rule) = 0;

  template <class Field>
  void key(const char* name, Field& field, const Rule& rule) {
    visit(name, &field, rule);
  }

  // What must hold between keys of this section; "" is the section itself. `fault` says what is wrong with the first of
  // them, when none has a fault of its own: its value is not the user's then.
  virtual void require(bool /*holds*/, const std::vector<std::string>& /*keys*/, const std::string& /*fault*/) {}

  template <class Section>
  void section(const char* name, Section& section) {
    group(name, [&] { section.keys(*this); });
  }
  // A list of maps, whose keys are known by their number: data.sources.0.path.
  template <class Section>
  void sections(const char* name, std::vector<Section>& list) {
    const size_t count = enter_list(name, list.size());
    if (count != list.size()) list.resize(count);
    for (size_t i = 0; i < count; ++i) {
      enter_item(std::to_string(i).c_str());
      list[i].keys(*this);
      leave();
    }
    leave();
  }
  template <class Keys>
  void group(const char* name, Keys keys) {  // a section that has some keys of a struct
    enter(name);
    keys();
    leave();
  }

  virtual bool reads() const { return false; }  // then values change: what was visited may be others' default

 protected:
  virtual void enter(const char* section) = 0;
  virtual size_t enter_list(const char* name, size_t count) {  // how many there are, or will be
    enter(name);
    return count;
  }
  virtual void enter_item(const char* number) { enter(number); }
  virtual void leave() = 0;
};

// A visitor that calls Self::each(name, value, rule) for values of every type, and knows where it is.
template <class Self>
class EachKey : public KeyVisitor {
 public:
  void visit(const char* name, KeyVisitor::Value value, const Rule& rule) override {
    std::visit([&](auto* field) { static_cast<Self&>(*this).each(name, *field, rule); }, value);
  }

 protected:
  // "stages.align.tokens"; of no name the section's own, "stages.align".
  std::string path_of(const std::string& name) const {
    return name.empty() && !path_.empty() ? path_.substr(0, path_.size() - 1) : path_ + name;
  }
  void enter(const char* section) override { path_ += std::string(section) + "."; }
  void leave() override { path_.resize(path_.rfind('.', path_.size() - 2) + 1); }

 private:
  std::string path_;
};

}  // namespace flashmorph
