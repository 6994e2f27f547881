#include "core/config/differences.h"

#include <algorithm>

#include "core/config/writer.h"

namespace flashmorph::schema {
namespace {

// Every key's full path and value, in the table's order: the same keys for every config.
class Flat : public PathVisitor<Flat> {
 public:
  template <class Value>
  void key(const char* name, const Value& value, const Rule&) {
    values.emplace_back(path_of(name), yaml_of(value));
  }

  std::vector<std::pair<std::string, std::string>> values;
};

}  // namespace
}  // namespace flashmorph::schema

namespace flashmorph {
namespace {

std::vector<std::pair<std::string, std::string>> values_of(const RunConfig& config) {
  schema::Flat flat;
  RunConfig copy = config;
  schema::visit(flat, copy);
  return flat.values;
}

}  // namespace

std::vector<ChangedKey> changed_keys(const RunConfig& before, const RunConfig& now) {
  const auto old_values = values_of(before), new_values = values_of(now);
  std::vector<ChangedKey> changes;
  for (size_t i = 0; i < new_values.size(); ++i)
    if (const std::string& path = new_values[i].first; new_values[i].second != old_values[i].second)
      changes.push_back({path, old_values[i].second, new_values[i].second, changes_result(path)});
  return changes;
}

bool changes_result(const std::string& path) {
  for (const char* key : {"run.name", "run.dir", "run.time_limit", "device.threads", "mixer.chunk"})
    if (path == key) return false;
  for (const char* section : {"parallel.", "metrics.", "checkpoint.", "health."})
    if (path.starts_with(section)) return false;
  return path.find(".parallel.") == std::string::npos;
}

std::string result_keys(const RunConfig& config) {
  std::string text;
  for (const auto& [path, value] : values_of(config))
    if (changes_result(path)) text += path + ": " + value + "\n";
  return text;
}

std::string text_of(const std::vector<ChangedKey>& changes) {
  std::string text;
  for (const ChangedKey& change : changes)
    text += (text.empty() ? "" : "; ") + change.path + ": " + change.before + " -> " + change.now;
  return text;
}

}  // namespace flashmorph
