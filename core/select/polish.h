#pragma once

#include <cstdint>
#include <vector>

#include "core/select/selector.h"

namespace flashmorph {

// Scores are given by a relaxation: the best sum of them need not be the best set. From a pick on, the best exchange
// of one of the `width` kept layers of the lowest scores for one of the `width` dropped layers of the highest, within
// the budget and as a judge of hard mixtures compares sets (JudgedSet), again and again, until none is better.
// Returns the exchanges; the pick's layers are those after the last. Its margin and noise stay those of the scores.
std::vector<Exchange> polish(Pick& pick, const Evidence& evidence, int64_t width);

}  // namespace flashmorph
