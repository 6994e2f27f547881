#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

// Reads a YAML into the fields that `keys` visits. BadInput with all its faults: unknown and doubled keys, types,
// ranges, choices, and what does not hold between keys. `set` holds "key.path=value", which count instead of the
// text's.
void read_yaml(const std::string& text, const std::string& file_name, const std::vector<std::string>& set,
               const std::function<void(KeyVisitor&)>& keys);

}  // namespace flashmorph
