#pragma once

#include <cstdint>

#include "core/config/keys.h"

namespace flashmorph {

struct WindowSettings {
  int64_t window = 512;

  void keys(KeyVisitor& v) {
    v.key("window", window, {"window's tokens that a token sees, itself among them", 1, 1 << 20});
  }
};

}  // namespace flashmorph
