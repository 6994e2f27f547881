#pragma once

#include <cstdint>

#include "core/config/keys.h"

namespace flashmorph {

struct RandomSettings {
  int64_t seed = 1;

  void keys(KeyVisitor& v) { v.key("seed", seed, {"random: the pick follows from it", 0, kMany}); }
};

}  // namespace flashmorph
