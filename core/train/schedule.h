#pragma once

#include <cstdint>

namespace flashmorph {

// Learning rate by step: a linear warm-up to `from`, then a cosine to `to` at the last step.
struct CosineSchedule {
  double from;
  double to;
  int64_t steps;
  int64_t warmup_steps = 0;

  double at(int64_t step) const;
};

}  // namespace flashmorph
