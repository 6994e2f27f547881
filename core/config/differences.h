#pragma once

#include <string>
#include <vector>

#include "core/config/run_config.h"

namespace flashmorph {

// A key that two configs give different values: its full path, and the values as YAML.
struct ChangedKey {
  std::string path;
  std::string before;
  std::string now;
  bool changes_result;
};

std::vector<ChangedKey> changed_keys(const RunConfig& before, const RunConfig& now);

// "path: value", a line a key that results depend on.
std::string result_keys(const RunConfig& config);

// "stages.align.tokens: 16384 -> 32768; ..."
std::string text_of(const std::vector<ChangedKey>& changes);

}  // namespace flashmorph
