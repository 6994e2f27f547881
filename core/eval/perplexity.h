#pragma once

#include <cstdint>

#include "core/data/token_view.h"
#include "core/morph/morphable_model.h"

namespace flashmorph {

struct LikelihoodSum {  // adds up over windows and ranks; perplexity = exp(negative_log / tokens)
  double negative_log = 0.0;
  int64_t tokens = 0;
};

// Next-token loss of windows [first, last) of `length` tokens of the text; documents in a window are read apart. On a
// pipeline the last rank has the sum, the others nothing.
LikelihoodSum text_likelihood(const MorphableModel& model, const Routes& routes, TokenView text, int64_t length,
                              int64_t first, int64_t last);

}  // namespace flashmorph
