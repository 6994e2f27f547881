#pragma once

#include <cstdint>

#include "core/select/selector.h"

namespace flashmorph {

// Scores are given by a relaxation: the best sum of them need not be the best set. A judge of hard mixtures compares
// the pick with the uniform layers and with what `ablate` would keep (JudgedSet says what is better). From the best of
// the three on, one layer is exchanged for another within the budget, again and again, until none is better: the
// `width` dropped layers that help the set most, each added to it, are tried in the place of every kept one. So the
// layers left in the pick are never worse than any of the three, as judged. Its margin and noise stay those of the
// scores. Judged: 3 + L + 1 sets, and (L - K) + width K an exchange.
void polish(Pick& pick, const Evidence& evidence, int64_t width);

}  // namespace flashmorph
