#include "core/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace flashmorph {

double CosineSchedule::at(int64_t step) const {
  if (step < warmup_steps) return from * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  const int64_t span = std::max<int64_t>(1, steps - 1 - warmup_steps);
  const double progress = std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(span));
  return to + 0.5 * (from - to) * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace flashmorph
