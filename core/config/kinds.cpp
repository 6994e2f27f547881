#include "core/config/kinds.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/config/writer.h"

namespace flashmorph {
namespace {

using Family = std::map<std::string, std::unique_ptr<kinds::Settings>>;

Family& family_named(const std::string& name) {
  static std::map<std::string, Family> families;
  return families[name];
}

// As messages quote a text of the YAML.
std::string quoted(std::string value) {
  if (value.starts_with('"')) value.front() = value.back() = '\'';
  return value;
}

}  // namespace

bool kinds::add(const std::string& family, std::unique_ptr<Settings> defaults) {
  const std::string kind = defaults->kind;
  return family_named(family).emplace(kind, std::move(defaults)).second;
}

std::vector<std::string> kinds_of(const std::string& family) {
  std::vector<std::string> names;
  for (const auto& [kind, defaults] : family_named(family)) names.push_back(kind);
  return names;
}

KindSettings::KindSettings(const std::string& family) : family_(family) {
  for (const auto& [kind, defaults] : family_named(family)) all_.push_back(defaults->clone());
}

KindSettings& KindSettings::operator=(const KindSettings& other) {
  if (this == &other) return *this;
  all_.clear();
  for (const auto& one : other.all_) all_.push_back(one->clone());
  return *this;
}

void KindSettings::keys(KeyVisitor& v) {
  for (const auto& one : all_) one->keys(v);
}

void KindSettings::keys_of(const std::string& kind, KeyVisitor& v) const {
  for (const auto& one : all_)
    if (one->kind == kind) one->keys(v);
}

void KindSettings::check_only(const std::vector<std::string>& used, const std::string& section) const {
  for (const auto& one : all_) {
    if (std::ranges::count(used, one->kind) > 0) continue;
    const auto found = schema::values_of(*one), usual = schema::values_of(*family_named(family_).at(one->kind));
    for (size_t i = 0; i < found.size(); ++i)
      if (found[i].value != usual[i].value)
        throw BadInput(section + "." + found[i].path,
                       fmt::format("is {}, but {} {} no such setting, it is {}'s: leave it out", quoted(found[i].value),
                                   listed(used), used.size() == 1 ? "has" : "have", one->kind));
  }
}

}  // namespace flashmorph
