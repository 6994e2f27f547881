#pragma once

#include <cstdint>

#include "core/config/keys.h"

namespace flashmorph {

struct WindowSettings {
  int64_t window = 512;
  bool sinks = false;

  void keys(KeyVisitor& v) {
    v.key("window", window, {"window's tokens that a token sees, itself among them", 1, 1 << 20});
    v.key(
        "sinks", sinks,
        {"window's learned logit a head, from 0 on, in the softmax's denominator, so that a head may look at nothing"});
  }
};

}  // namespace flashmorph
