#pragma once

#include <cstdint>

#include "core/model/model_spec.h"

namespace flashmorph {

// Multiply-adds a token of a forward pass over `length` tokens: what a model's parts cost against each other.
// A layer: the attention's projections, its scores and their use over half the length on average, the feed-forward (of
// a token's experts).
double layer_cost(const ModelSpec& spec, int64_t layer, int64_t length);
double embedding_cost(const ModelSpec& spec);  // a row looked up
double head_cost(const ModelSpec& spec);       // the logits

}  // namespace flashmorph
