#include "core/config/differences.h"

#include <algorithm>

#include "core/base/listed.h"
#include "core/config/writer.h"

namespace flashmorph {

namespace {

const std::string kNone = "none";

std::string value_at(const std::string& path, const std::vector<schema::KeyValue>& values) {
  const auto found = std::ranges::find(values, path, &schema::KeyValue::path);
  return found == values.end() ? kNone : found->value;
}

}  // namespace

std::vector<ChangedKey> changed_keys(const RunConfig& before, const RunConfig& now) {
  const auto old_values = schema::values_of(before), new_values = schema::values_of(now);
  std::vector<ChangedKey> changes;
  for (const auto& [path, value, changes_results] : new_values)
    if (const std::string old = value_at(path, old_values); old != value)
      changes.push_back({path, old, value, changes_results});
  for (const auto& [path, value, changes_results] : old_values)  // of a list that was longer
    if (value_at(path, new_values) == kNone) changes.push_back({path, value, kNone, changes_results});
  return changes;
}

std::string result_keys(const RunConfig& config) {
  std::string text;
  for (const auto& [path, value, changes_results] : schema::values_of(config))
    if (changes_results) text += path + ": " + value + "\n";
  return text;
}

std::string text_of(const std::vector<ChangedKey>& changes) {
  std::vector<std::string> texts;
  for (const ChangedKey& change : changes)
    texts.push_back(fmt::format("{}: {} -> {}", change.path, change.before, change.now));
  return listed(texts, "; ");
}

}  // namespace flashmorph
