#include "core/model/experts.h"

#include <ATen/ATen.h>

#include "core/model/blocks.h"
#include "core/ops/projection.h"

// Letters: N tokens of the batch, E experts, P experts a token, D hidden.

namespace flashmorph {
namespace {

struct Routing {
  at::Tensor weight_NP;
  at::Tensor expert_NP;
};

Routing route(const at::Tensor& x_ND, const at::Tensor& router, const ExpertsSpec& spec) {
  const at::ScalarType exact = x_ND.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor p_NE = at::softmax(project(x_ND, router), -1, exact);
  auto [weight_NP, expert_NP] = p_NE.topk(spec.per_token, -1);
  if (spec.normalized) weight_NP = weight_NP / weight_NP.sum(-1, /*keepdim=*/true);
  return {weight_NP.to(x_ND.scalar_type()), expert_NP};
}

// How many pairs each expert gets, on the host; without values, alike.
at::Tensor sizes_of_groups(const at::Tensor& expert_of_pair, int64_t experts) {
  if (!expert_of_pair.is_meta()) return expert_of_pair.bincount({}, experts).cpu();
  const at::Tensor firsts = at::arange(experts + 1, at::kLong) * expert_of_pair.numel();
  return at::div(firsts, experts, "floor").diff();
}

std::string expert_prefix(const std::string& prefix, int64_t expert) {
  return prefix + "experts." + std::to_string(expert) + ".";
}

}  // namespace

at::Tensor mixture_of_experts(const at::Tensor& x_BTD, const ExpertWeights& weights, const ExpertsSpec& spec) {
  const at::Tensor x_ND = x_BTD.flatten(0, -2);
  const Routing routing = route(x_ND, weights.router, spec);
  const int64_t tokens = x_ND.size(0), hidden = x_ND.size(1);

  const at::Tensor expert_of_pair = routing.expert_NP.flatten();
  const at::Tensor by_expert = std::get<1>(expert_of_pair.sort(/*stable=*/true, 0, /*descending=*/false));
  const at::Tensor pairs = x_ND.unsqueeze(1).expand({tokens, spec.per_token, hidden}).reshape({-1, hidden});
  const at::Tensor grouped = pairs.index_select(0, by_expert);
  const at::Tensor group_sizes = sizes_of_groups(expert_of_pair, spec.count);
  const int64_t* group_size = group_sizes.const_data_ptr<int64_t>();

  std::vector<at::Tensor> outputs;
  int64_t start = 0;
  for (size_t expert = 0; expert < weights.experts.size(); start += group_size[expert++])
    if (group_size[expert] > 0)
      outputs.push_back(mlp(grouped.narrow(0, start, group_size[expert]), weights.experts[expert]));
  // Back in the tokens' order by a permutation and a sum, whose order is fixed, rather than by scattered additions.
  const at::Tensor y_NPD = at::cat(outputs).index_select(0, by_expert.argsort()).view({tokens, spec.per_token, hidden});
  return (y_NPD * routing.weight_NP.unsqueeze(-1)).sum(1).view(x_BTD.sizes());
}

ExpertWeights load_experts(const ModelFiles& files, const std::string& prefix, const ModelSpec& spec,
                           const Placement& placement) {
  ExpertWeights weights;
  weights.router = read_split(files, prefix + "gate.weight", {spec.experts.count, spec.hidden}, Split::none, placement);
  for (int64_t expert = 0; expert < spec.experts.count; ++expert)
    weights.experts.push_back(
        load_mlp(files, expert_prefix(prefix, expert), spec.hidden, spec.experts.intermediate, placement));
  return weights;
}

Parameters parameters_of(const ExpertWeights& weights, const std::string& prefix) {
  Parameters parameters = {{prefix + "gate.weight", weights.router, Split::none, /*partial_gradient=*/true}};
  for (size_t expert = 0; expert < weights.experts.size(); ++expert)
    for (Parameter& parameter :
         parameters_of(weights.experts[expert], expert_prefix(prefix, static_cast<int64_t>(expert))))
      parameters.push_back(std::move(parameter));
  return parameters;
}

}  // namespace flashmorph
