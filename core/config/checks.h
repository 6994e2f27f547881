#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/config/run_config.h"
#include "core/config/yaml_input.h"

namespace flashmorph::schema {

struct Ratio {  // "3:1": three linear layers for each full one
  int64_t linear;
  int64_t full;
};
std::optional<Ratio> ratio_of(const std::string& text);

// The rules between keys. A rule over a key that is already at fault is passed over: its value is not the user's.
void check(const RunConfig& config, YamlInput& input);

}  // namespace flashmorph::schema
