#include "distributed/coordinator/plans.h"

#include "core/select/rules.h"

namespace flashmorph {
namespace {

proto::HybridPlan plan_by(const std::string& method, int64_t layers, int64_t keep_full, const std::vector<double>& gates) {
  proto::HybridPlan plan;
  plan.set_name(method);
  std::vector<int64_t> kept;
  if (method == "flashmorph") {
    kept = top_layers(gates, keep_full);
    plan.set_margin(keep_margin(gates, keep_full));
    for (const double gate : gates) plan.add_scores(gate);
  } else if (method == "uniform") {
    kept = uniform_layers(layers, keep_full);
  }  // all_linear keeps none
  for (const int64_t layer : kept) plan.add_full_layers(layer);
  return plan;
}

}  // namespace

proto::PlanSet discretize(const RunConfig& config, int64_t layers, int64_t keep_full, const std::vector<double>& gates) {
  proto::PlanSet set;
  set.set_layers(layers);
  *set.add_plans() = plan_by(config.stages.select.method, layers, keep_full, gates);
  for (const std::string& other : config.stages.evaluate.compare)
    if (other != config.stages.select.method) *set.add_plans() = plan_by(other, layers, keep_full, gates);
  return set;
}

}  // namespace flashmorph
