#pragma once

#include <cstdint>
#include <vector>

#include "core/select/selector.h"

namespace flashmorph {

// Scores are given by a relaxation: the best sum of them need not be the best set. A judge of hard mixtures compares
// the pick with the uniform layers of the same budget (JudgedSet says what is better). From the better of the two on,
// the best exchange of one of the `width` kept layers of the lowest scores for one of the `width` dropped layers of the
// highest, within the budget, again and again, until none is better. So the layers left in the pick are never worse
// than either, as judged. Its margin and noise stay those of the scores.
void polish(Pick& pick, const Evidence& evidence, int64_t width);

}  // namespace flashmorph
