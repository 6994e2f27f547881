#pragma once

#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "distributed/parallel/mesh.h"
#include "proto/run.pb.h"

namespace flashmorph {

// How long each layer's two attentions take on these ranks, milliseconds to read one sequence of `length` random
// states (attention_seconds), of the slowest rank that holds a part of the layer. The same on every rank.
// Collective.
proto::LayerLatency layer_latency(const MorphableModel& model, int64_t length, Mesh& mesh);

// As a budget in milliseconds takes it.
LayerLatency numbers_of(const proto::LayerLatency& latency);

}  // namespace flashmorph
