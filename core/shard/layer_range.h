#pragma once

#include <cstdint>

namespace flashmorph {

// Consecutive layers, [first, last), by their numbers in the whole model.
struct LayerRange {
  int64_t first = 0;
  int64_t last = 0;

  int64_t count() const { return last - first; }
  bool operator==(const LayerRange&) const = default;
};

}  // namespace flashmorph
