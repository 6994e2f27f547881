#pragma once

#include <any>
#include <map>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

// What the YAML chooses by name and knows nothing else of: a mixer, a selector. Each kind registers itself beside its
// code, with a struct of the settings that are its alone; their keys then stand in the section that chooses.
struct Kind {
  std::any settings;
  void (*visit)(std::any& settings, KeyVisitor& v);

  void keys(KeyVisitor& v) { visit(settings, v); }
};

struct NoSettings {
  void keys(KeyVisitor&) {}
};

using Kinds = std::map<std::string, Kind>;      // by name
Kinds& kinds_named(const std::string& family);  // "mixer", "selector": those that have registered
std::vector<std::string> kinds_of(const std::string& family);

// At start-up. Returns true.
template <class Values = NoSettings>
bool register_kind(const std::string& family, const std::string& kind) {
  const auto visit = [](std::any& settings, KeyVisitor& v) { std::any_cast<Values&>(settings).keys(v); };
  return kinds_named(family).emplace(kind, Kind{Values(), visit}).second;
}

// The settings of all kinds of a family; a value, as the fields beside it are.
class KindSettings {
 public:
  explicit KindSettings(const std::string& family) : family_(family), all_(kinds_named(family)) {}  // their defaults

  void keys(KeyVisitor& v) {
    for (auto& [name, kind] : all_) kind.keys(v);
  }

  template <class Values>
  Values& of() {
    for (auto& [name, kind] : all_)
      if (auto* found = std::any_cast<Values>(&kind.settings)) return *found;
    throw std::logic_error(std::string("no kind has registered ") + typeid(Values).name());
  }
  template <class Values>
  const Values& of() const {
    return const_cast<KindSettings&>(*this).of<Values>();
  }

  void keys_of(const std::string& kind, KeyVisitor& v) {  // of one alone, which need not be there
    if (const auto found = all_.find(kind); found != all_.end()) found->second.keys(v);
  }

  // BadInput for a key that is not at its default though its kind is not in use: `section` is where the keys stand.
  void check_only(const std::vector<std::string>& used, const std::string& section) const;

 private:
  std::string family_;
  Kinds all_;
};

}  // namespace flashmorph
