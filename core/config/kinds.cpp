#include "core/config/kinds.h"

#include <algorithm>
#include <map>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/config/values.h"

namespace flashmorph {
namespace {

std::map<std::string, Kind>& family_named(const std::string& name) {
  static std::map<std::string, std::map<std::string, Kind>> families;
  return families[name];
}

// As messages quote a text of the YAML.
std::string quoted(std::string value) {
  if (value.starts_with('"')) value.front() = value.back() = '\'';
  return value;
}

}  // namespace

bool register_kind(const std::string& family, Kind kind) {
  return family_named(family).emplace(kind.name, kind).second;
}

std::vector<std::string> kinds_of(const std::string& family) {
  std::vector<std::string> names;
  for (const auto& [name, defaults] : family_named(family)) names.push_back(name);
  return names;
}

KindSettings::KindSettings(const std::string& family) : family_(family) {
  for (const auto& [name, defaults] : family_named(family)) all_.push_back(defaults);
}

void KindSettings::keys(KeyVisitor& v) {
  for (Kind& kind : all_) kind.keys(v);
}

void KindSettings::keys_of(const std::string& name, KeyVisitor& v) {
  for (Kind& kind : all_)
    if (kind.name == name) kind.keys(v);
}

void KindSettings::check_only(const std::vector<std::string>& used, const std::string& section) const {
  for (const Kind& kind : all_) {
    if (std::ranges::count(used, kind.name) > 0) continue;
    for (const ChangedKey& changed : changed_keys(family_named(family_).at(kind.name), kind))
      throw BadInput(section + "." + changed.path,
                     fmt::format("is {}, but {} {} no such setting, it is {}'s: leave it out", quoted(changed.now),
                                 listed(used), used.size() == 1 ? "has" : "have", kind.name));
  }
}

}  // namespace flashmorph
