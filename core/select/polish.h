#pragma once

#include <cstdint>

#include "core/select/selector.h"

namespace flashmorph {

// Scores are given by a relaxation: the best sum of them need not be the best set. A judge of hard mixtures compares
// the pick with the uniform layers and with what `ablate` would keep (JudgedSet says what is better). From the best of
// the three on, one layer is exchanged for another within the budget, again and again, until none is better: the w
// dropped layers that help the set most, each added to it, are tried in the place of every kept one, w = `candidates`,
// of fewer than 8 kept layers as many more as make no fewer exchanges: candidates * 8 / K. So the layers left in the
// pick are never worse than any of the three, as judged. Where there is a closer judge, what is decided is decided by
// it: the three, and of the exchanges the best 4 beside the set itself. The pick's margin and noise stay those of the
// scores. Judged: 3 + L + 1 sets, and (L - K) + w K an exchange, 4 of them once more. The pick keeps a layer at least.
void polish(Pick& pick, const Evidence& evidence, int64_t candidates);

}  // namespace flashmorph
