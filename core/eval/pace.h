#pragma once

#include <cstdint>

#include "core/morph/morphable_model.h"

namespace flashmorph {

// How fast a model reads and writes, and what it remembers meanwhile. Times are medians in seconds, on this rank's
// clock; bytes are this rank's.
struct Pace {
  int64_t length = 0;            // tokens of the prompt
  int64_t rows = 0;              // sequences at once
  double prefill_seconds = 0.0;  // of all rows, until their first token is known: the time to the first token
  double token_seconds = 0.0;    // of one more token in every row
  int64_t kv_bytes = 0;          // keys and values of the full layers
  int64_t state_bytes = 0;       // states of the linear ones

  double prefill_tokens_per_second() const { return static_cast<double>(rows * length) / prefill_seconds; }
  double decode_tokens_per_second() const { return static_cast<double>(rows) / token_seconds; }
};

// Reads `rows` prompts of random tokens and writes `tokens` more in each: once unmeasured, then three times.
// Collective over the pipeline and tensor groups.
Pace pace_of(const MorphableModel& model, const Routes& routes, int64_t length, int64_t rows, int64_t tokens);

// Seconds that this layer's attention takes to read `length` random states as pace_of's prefill does: into a cache, in
// the decoder's chunks; the median of as many runs. On this rank's clock.
double attention_seconds(const MorphableModel& model, int64_t layer, const Route& route, int64_t length);

}  // namespace flashmorph
