#pragma once

#include <cstdint>
#include <vector>

#include "core/data/token_view.h"
#include "core/morph/morphable_model.h"

namespace flashmorph {

struct LikelihoodSum {  // adds up over windows and ranks; perplexity = exp(negative_log / tokens)
  double negative_log = 0.0;
  int64_t tokens = 0;

  LikelihoodSum& operator+=(const LikelihoodSum& more) {
    negative_log += more.negative_log;
    tokens += more.tokens;
    return *this;
  }
};

// Next-token loss of windows [first, last) of `length` tokens of the text; documents in a window are read apart. On a
// pipeline the last rank has the sum, the others nothing.
LikelihoodSum text_likelihood(const MorphableModel& model, const Routes& routes, TokenView text, int64_t length,
                              int64_t first, int64_t last);

// The same by where a token stands in its document: sum b is over places [edges[b], edges[b + 1]), those of [0, 1) have
// no token before and none is predicted.
std::vector<LikelihoodSum> likelihood_by_place(const MorphableModel& model, const Routes& routes, TokenView text,
                                               int64_t length, int64_t first, int64_t last,
                                               const std::vector<int64_t>& edges);

}  // namespace flashmorph
