#include "core/config/differences.h"

#include "core/base/listed.h"
#include "core/config/writer.h"

namespace flashmorph {

std::vector<ChangedKey> changed_keys(const RunConfig& before, const RunConfig& now) {
  const auto old_values = schema::values_of(before), new_values = schema::values_of(now);
  std::vector<ChangedKey> changes;
  for (size_t i = 0; i < new_values.size(); ++i)  // the same keys for every config
    if (const auto& [path, value, changes_results] = new_values[i]; value != old_values[i].value)
      changes.push_back({path, old_values[i].value, value, changes_results});
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
