#pragma once

#include <string>

#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// Recall by length and depth, teacher-forced and greedy, and perplexity, on the held-out text; the samples are shared
// out over the data ranks and are the same for every model. The measurement is whole on every rank; `name` and `after`
// are copied into it.
proto::Measurement evaluate(const MorphableModel& model, const Routes& routes, const std::string& name,
                            const std::string& after, StageContext& context);

}  // namespace flashmorph
