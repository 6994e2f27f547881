#pragma once

#include "core/config/keys.h"

namespace flashmorph {

struct GateSettings {
  double gate_penalty = 0.1;  // lambda

  void keys(KeyVisitor& v) {
    v.key("gate_penalty", gate_penalty,
          {"flashmorph: lambda, the pull of every gate towards linear attention", 0, kMany});
  }
};

}  // namespace flashmorph
