#pragma once

#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// Trains every layer's linear branch to do what its attention does on the teacher's own states:
//     mean over layers, tokens and channels of |A_lin(LN X) - A_full(LN X)|^2,  X the teacher's.
// The teacher streams forward; no gradient crosses a layer.
StageCost align(MorphableModel& model, StageContext& context);

}  // namespace flashmorph
