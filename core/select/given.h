#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/keys.h"

namespace flashmorph {

struct GivenSettings {  // exactly one of these
  std::vector<int64_t> layers;
  std::string plan;

  void keys(KeyVisitor& v) {
    v.key("layers", layers,
          {.meaning = "given: the layers that keep full attention, from 0 on",
           .least = 0,
           .most = 9999,
           .may_be_empty = true});
    v.key("plan", plan,
          {.meaning = "given, instead of layers: plan.json of another run, whose own pick is taken", .is_path = true});
  }
};

}  // namespace flashmorph
