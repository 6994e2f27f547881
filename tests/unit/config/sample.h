#pragma once

#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/config/run_config.h"

namespace flashmorph::test {

// The smallest YAML that is accepted; what a test appends starts on line 7, still inside stages.
constexpr const char* kGood =
    "model: {path: teacher}\n"
    "budget: {full_layers: 3}\n"
    "data: {text: book.txt}\n"
    "stages:\n"
    "  align: {tokens: 1M}\n"
    "  select: {tokens: 256K}\n";

inline std::string faults_of(const std::string& yaml, const std::vector<std::string>& set = {}) {
  try {
    RunConfig::from_yaml(yaml, "run.yaml", set);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

}  // namespace flashmorph::test
