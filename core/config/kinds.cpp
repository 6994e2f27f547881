#include "core/config/kinds.h"

#include <algorithm>
#include <iterator>
#include <ranges>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/config/values.h"

namespace flashmorph {
namespace {

// As messages quote a text of the YAML.
std::string quoted(std::string value) {
  if (value.starts_with('"')) value.front() = value.back() = '\'';
  return value;
}

}  // namespace

Kinds& kinds_named(const std::string& family) {
  static std::map<std::string, Kinds> families;
  return families[family];
}

std::vector<std::string> kinds_of(const std::string& family) {
  std::vector<std::string> names;
  std::ranges::copy(std::views::keys(kinds_named(family)), std::back_inserter(names));
  return names;
}

void KindSettings::check_only(const std::vector<std::string>& used, const std::string& section) const {
  for (const auto& [name, kind] : all_) {
    if (std::ranges::count(used, name) > 0) continue;
    for (const ChangedKey& changed : changed_keys(kinds_named(family_).at(name), kind))
      throw BadInput(section + "." + changed.path,
                     fmt::format("is {}, but {} {} no such setting, it is {}'s: leave it out", quoted(changed.now),
                                 listed(used), used.size() == 1 ? "has" : "have", name));
  }
}

}  // namespace flashmorph
