#pragma once

#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace flashmorph {

// How a section of the YAML says its keys, once, below its fields:
//   void keys(KeyVisitor& v) { v.key("seed", seed, {"all randomness follows from it", 0, kMany}); ... }
// Whatever has to know all keys visits them: reading, writing, the reference page and the differences between two
// runs (values.h). What must hold between its keys a section's rules() say, by require().

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

// Paths are those of the whole YAML: "stages.align.tokens", "data.sources.0.path".
class KeyVisitor {
 public:
  virtual ~KeyVisitor() = default;

  template <class Field>
  void key(const std::string& name, Field& field, const Rule& rule) {
    if (!without_.contains(name)) visit(path_of(name), &field, rule);
  }
  // One that says where or how the work is done, not what comes of it.
  template <class Field>
  void may_change(const std::string& name, Field& field, Rule rule) {
    rule.changes_results = false;
    key(name, field, rule);
  }
  // without: its keys that mean nothing here.
  template <class Section>
  void section(const std::string& name, Section& section, const std::set<std::string>& without = {}) {
    within(name, /*is_list=*/false, without, [&] {
      section.keys(*this);
      if constexpr (requires { section.rules(*this); }) section.rules(*this);
    });
  }
  template <class Section>
  void sections(const std::string& name, std::vector<Section>& list) {  // a list of maps, known by their number
    within(name, /*is_list=*/true, {}, [&] {
      list.resize(items(list.size()));
      for (size_t i = 0; i < list.size(); ++i) section(std::to_string(i), list[i]);
    });
  }

  // What must hold between keys of this section; "" is the section itself. `fault` says what is wrong with the first of
  // them, when none has a fault of its own: its value is not the user's then.
  virtual void require(bool /*holds*/, const std::vector<std::string>& /*keys*/, const std::string& /*fault*/) {}

  virtual bool reads() const { return false; }  // then values change: what was visited may be others' default

 protected:
  using Value =
      std::variant<std::string*, int64_t*, double*, bool*, Range*, std::vector<int64_t>*, std::vector<std::string>*>;
  virtual void visit(const std::string& path, Value value, const Rule& rule) = 0;
  virtual void enter(const std::string& /*section*/, bool /*is_list*/) {}
  virtual size_t items(size_t count) { return count; }  // of the list that was entered
  virtual void leave() {}

  std::string path_of(const std::string& name) const {
    return path_ + (path_.empty() || name.empty() ? "" : ".") + name;
  }

 private:
  template <class Keys>
  void within(const std::string& name, bool is_list, std::set<std::string> without, const Keys& keys) {
    const std::string around = std::exchange(path_, path_of(name));
    without_.swap(without);
    enter(path_, is_list);
    keys();
    leave();
    without_.swap(without);
    path_ = around;
  }

  std::string path_;  // of the section
  std::set<std::string> without_;
};

}  // namespace flashmorph
