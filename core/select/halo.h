#pragma once

#include <cstdint>
#include <string>

#include "core/config/keys.h"

namespace flashmorph {

struct HaloSettings {
  std::string halo_scores;

  void keys(KeyVisitor& v) {
    v.key("halo_scores", halo_scores,
          {.meaning = "halo: JSON with lists commonsense and recall, a number for the model without each layer's full "
                      "attention; empty: measured",
           .is_path = true});
  }
};

}  // namespace flashmorph
