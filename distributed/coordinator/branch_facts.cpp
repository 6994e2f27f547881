#include "distributed/coordinator/branch_facts.h"

#include "core/base/bad_input.h"
#include "core/config/values.h"
#include "core/io/safetensors.h"

namespace flashmorph {

std::map<std::string, std::string> branch_facts(const RunConfig& config, const std::string& teacher) {
  std::map<std::string, std::string> facts = {{"teacher", teacher}};
  for (const auto& [key, value, rule] : values_of(config))
    if (key.starts_with("mixer.") && key != "mixer.init" && rule.changes_results) facts[key] = value;
  return facts;
}

void check_branches(const RunConfig& config, const std::string& teacher) {
  const std::string& file = config.stages.align.branches;
  if (file.empty()) return;
  const auto stored = SafetensorsFile::open(file);
  for (const auto& [key, expected] : branch_facts(config, teacher)) {
    const auto found = stored->metadata().find(key);
    if (found == stored->metadata().end())
      throw BadInput(file, "does not say its " + key + ": stages.align.branches takes branches.safetensors of a run");
    if (found->second != expected)
      throw BadInput(file, "holds branches whose " + key + " is " + found->second + ", expected " + expected +
                               ", as stages.align.branches goes on with the same teacher and mixer");
  }
}

}  // namespace flashmorph
