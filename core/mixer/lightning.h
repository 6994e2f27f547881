#pragma once

#include <string>

#include "core/config/keys.h"
#include "core/mixer/decay.h"

namespace flashmorph {

struct LightningSettings {
  std::string decay = "alibi";
  std::string output_norm = "head";

  void keys(KeyVisitor& v) {
    v.key("decay", decay, {.meaning = "lightning's decay per head", .choices = decay_rules()});
    v.key("output_norm", output_norm,
          {.meaning = "lightning's RMSNorm of the branch's output: over each head, or over all heads",
           .choices = {"head", "hidden"}});
  }
};

}  // namespace flashmorph
