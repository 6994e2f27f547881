#pragma once

#include <any>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

// What the YAML chooses by name and knows nothing else of: a mixer, a selector. Each kind registers itself beside its
// code, with a struct of the settings that are its alone; their keys then stand in the section that chooses.
struct Kind {
  std::string name;
  std::any settings;
  void (*visit)(std::any& settings, KeyVisitor& v);

  void keys(KeyVisitor& v) { visit(settings, v); }
};

struct NoSettings {
  void keys(KeyVisitor&) {}
};

// At start-up: `kind` is one of the family ("mixer", "selector"). Returns true.
bool register_kind(const std::string& family, Kind kind);
template <class Values = NoSettings>
bool register_kind(const std::string& family, const std::string& kind) {
  const auto visit = [](std::any& settings, KeyVisitor& v) { std::any_cast<Values&>(settings).keys(v); };
  return register_kind(family, Kind{kind, Values(), visit});
}

std::vector<std::string> kinds_of(const std::string& family);  // in alphabetical order

// The settings of all kinds of a family; a value, as the fields beside it are.
class KindSettings {
 public:
  explicit KindSettings(const std::string& family);  // their defaults

  void keys(KeyVisitor& v);

  template <class Values>
  Values& of() {
    for (Kind& kind : all_)
      if (auto* found = std::any_cast<Values>(&kind.settings)) return *found;
    throw std::logic_error(std::string("no kind has registered ") + typeid(Values).name());
  }
  template <class Values>
  const Values& of() const {
    return const_cast<KindSettings&>(*this).of<Values>();
  }

  // The keys of one kind; nothing for a kind that is not there.
  void keys_of(const std::string& kind, KeyVisitor& v);

  // BadInput for a key that is not at its default though its kind is not in use: `section` is where the keys stand.
  void check_only(const std::vector<std::string>& used, const std::string& section) const;

 private:
  std::string family_;
  std::vector<Kind> all_;
};

}  // namespace flashmorph
