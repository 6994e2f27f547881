#pragma once

#include <cstdint>
#include <string>

#include "core/config/keys.h"

namespace flashmorph {

struct BeamSettings {
  int64_t beam_width = 4;

  void keys(KeyVisitor& v) {
    v.key("beam_width", beam_width, {"beam: sets that are kept from one size to the next", 1, 1000});
  }
};

}  // namespace flashmorph
