#pragma once

#include <string>

#include "core/config/keys.h"

namespace flashmorph {

struct GateSettings {
  std::string objective = "budget";  // what moves the gates
  double gate_penalty = 0.1;         // lambda, the paper's
  int64_t stop = 0;
  int64_t polish = 2;
  int64_t finalist_samples = 128;

  bool has_penalty() const { return objective == "paper"; }
  double lambda() const { return has_penalty() ? gate_penalty : 0.0; }

  // The samples on which polish judges once more; 0: it does not.
  int64_t closer_than(int64_t judge_samples) const {
    return polish > 0 && finalist_samples > judge_samples ? finalist_samples : 0;
  }

  void keys(KeyVisitor& v) {
    v.key("objective", objective,
          {.meaning = "flashmorph: what moves the gates: the error under a budget that falls from all layers to one "
                      "(budget), or the error + lambda * the sum of gates (paper)",
           .choices = {"budget", "paper"}});
    v.key("gate_penalty", gate_penalty,
          {"flashmorph, objective paper: lambda, the pull of every gate towards linear attention", 0, kMany});
    v.key("stop", stop,
          {"flashmorph: end select once its pick has been the same for so many steps and its margin exceeds the gates' "
           "noise; 0: go through all tokens",
           0, kMany});
    v.key("polish", polish,
          {"flashmorph: hard mixtures are judged on held-out samples, the gates' pick beside uniform's and ablate's, "
           "then so many of the dropped layers, those that help most, in each kept one's place, of fewer than 8 kept "
           "ones "
           "as many more as make no fewer exchanges; 0: the gates alone pick",
           0, 1000});
    v.key(
        "finalist_samples", finalist_samples,
        {"flashmorph: samples, judge_samples' first, on which polish judges once more before it decides: the best few "
         "exchanges and the contenders; no more than judge_samples: it decides on those",
         1, kMany});
  }
};

}  // namespace flashmorph
