#pragma once

#include <string>

#include "core/config/keys.h"

namespace flashmorph {

struct GateSettings {
  std::string objective = "budget";  // what moves the gates
  double gate_penalty = 0.1;         // lambda, the paper's

  bool has_penalty() const { return objective == "paper"; }
  double lambda() const { return has_penalty() ? gate_penalty : 0.0; }

  void keys(KeyVisitor& v) {
    v.key("objective", objective,
          {.meaning = "flashmorph: what moves the gates: the error under a budget that falls from all layers to one "
                      "(budget), or the error + lambda * the sum of gates (paper)",
           .choices = {"budget", "paper"}});
    v.key("gate_penalty", gate_penalty,
          {"flashmorph, objective paper: lambda, the pull of every gate towards linear attention", 0, kMany});
  }
};

}  // namespace flashmorph
