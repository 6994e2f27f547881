#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/model/config_json.h"

namespace flashmorph {

// The rotary embedding's frequencies as config.json describes them: rope_parameters, or rope_scaling and rope_theta,
// flat or by layer type, of which the full attention layers' count. Read as transformers 5 reads them. Kinds whose
// frequencies depend on the sequence's length (dynamic, longrope) are refused.
struct Rope {
  enum class Kind { plain, linear, llama3, yarn };
  Kind kind = Kind::plain;
  double theta = 10000.0;
  double factor = 1.0;                 // linear, llama3, yarn: how much longer the context became
  double original_positions = 0.0;     // llama3, yarn: the longest position before
  double low_frequency_factor = 1.0;   // llama3: wavelengths above original_positions / this are scaled by factor
  double high_frequency_factor = 4.0;  // llama3: wavelengths below original_positions / this stay
  double beta_fast = 32.0;             // yarn: channels that turn this often within original_positions stay
  double beta_slow = 1.0;              // yarn: channels that turn less often than this are scaled by factor
  bool whole_pairs = true;             // yarn: the ramp begins and ends at a whole pair of channels
  double scale = 1.0;                  // yarn: of cos and sin

  // `usual_theta`: the family's, where config.json gives none. BadInput.
  static Rope of(const ConfigJson& config, double usual_theta = 10000.0);

  // Radians a position, of each of the head_dim / 2 channel pairs, in float64.
  std::vector<double> frequencies(int64_t head_dim) const;
};

}  // namespace flashmorph
