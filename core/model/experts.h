#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "core/model/weights.h"

namespace flashmorph {

// Mixture of experts: each token's output is the weighted sum of its top experts' SwiGLU feed-forwards,
//   y = sum over e in top(p) of w_e * mlp_e(x),   p = softmax(router x),
// with w = p, or p / (sum of p over the top) when normalized.
// The (token, expert) pairs are grouped by expert, so that each expert runs once over its tokens.
// x_BTD is whole on every rank, and so is the routing; returns this rank's partial output_BTD. Differentiable in x, the
// experts and, through w, the router, whose gradient on each rank is that rank's part.
at::Tensor mixture_of_experts(const at::Tensor& x_BTD, const ExpertWeights& weights, const ExpertsSpec& spec);

// mlp.gate.weight (the router) and mlp.experts.{e}.* of the layer with this prefix.
ExpertWeights load_experts(const ModelFiles&, const std::string& prefix, const ModelSpec&, const Placement&);
Parameters parameters_of(const ExpertWeights&, const std::string& prefix);

}  // namespace flashmorph
