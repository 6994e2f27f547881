#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

// What the YAML chooses by name and knows nothing else of: a mixer, a selector. Each kind registers itself beside its
// code, with a struct of the settings that are its alone; their keys then stand in the section that chooses.

namespace kinds {

struct Settings {  // of one kind, with its type behind it
  std::string kind;
  explicit Settings(std::string kind_name) : kind(std::move(kind_name)) {}
  virtual ~Settings() = default;
  virtual std::unique_ptr<Settings> clone() const = 0;
  virtual void keys(KeyVisitor& v) = 0;
};

template <class Values>
struct SettingsOf : Settings {
  using Settings::Settings;
  Values values;
  std::unique_ptr<Settings> clone() const override { return std::make_unique<SettingsOf>(*this); }
  void keys(KeyVisitor& v) override { values.keys(v); }
};

bool add(const std::string& family, std::unique_ptr<Settings> defaults);

}  // namespace kinds

struct NoSettings {
  void keys(KeyVisitor&) {}
};

// At start-up: `kind` is one of the family ("mixer", "selector"). Returns true.
template <class Values = NoSettings>
bool register_kind(const std::string& family, const std::string& kind) {
  return kinds::add(family, std::make_unique<kinds::SettingsOf<Values>>(kind));
}

std::vector<std::string> kinds_of(const std::string& family);  // in alphabetical order

// The settings of all kinds of a family; a value, as the fields beside it are.
class KindSettings {
 public:
  explicit KindSettings(const std::string& family);  // their defaults
  KindSettings(const KindSettings& other) : family_(other.family_) { *this = other; }
  KindSettings& operator=(const KindSettings& other);

  void keys(KeyVisitor& v);

  template <class Values>
  Values& of() {
    for (const auto& one : all_)
      if (auto* found = dynamic_cast<kinds::SettingsOf<Values>*>(one.get())) return found->values;
    throw std::logic_error(std::string("no kind has registered ") + typeid(Values).name());
  }
  template <class Values>
  const Values& of() const {
    return const_cast<KindSettings&>(*this).of<Values>();
  }

  // The keys of one kind; nothing for a kind that is not there.
  void keys_of(const std::string& kind, KeyVisitor& v) const;

  // BadInput for a key that is not at its default though its kind is not in use: `section` is where the keys stand.
  void check_only(const std::vector<std::string>& used, const std::string& section) const;

 private:
  std::string family_;
  std::vector<std::unique_ptr<kinds::Settings>> all_;
};

}  // namespace flashmorph
