#pragma once

#include <cstdint>
#include <string>

#include "core/config/keys.h"

namespace flashmorph {

struct ExhaustiveSettings {
  int64_t most_sets = 1000;

  void keys(KeyVisitor& v) {
    v.key("most_sets", most_sets, {"exhaustive: refused when more sets fill the budget", 1, 1e6});
  }
};

}  // namespace flashmorph
