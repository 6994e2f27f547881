#include "distributed/coordinator/plans.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/base/sha256.h"
#include "core/select/by_gates.h"
#include "core/select/selector.h"
#include "distributed/stages/gate_history.h"

namespace flashmorph {
namespace {

proto::HybridPlan plan_by(const std::string& method, const Evidence& evidence) {
  const Pick pick = selector_named(method).pick(evidence);
  proto::HybridPlan plan;
  plan.set_name(method);
  plan.set_margin(pick.margin);
  plan.set_noise(pick.noise);
  plan.mutable_full_layers()->Add(pick.full_layers.begin(), pick.full_layers.end());
  plan.mutable_scores()->Add(pick.scores.begin(), pick.scores.end());
  for (const Contender& one : pick.contenders) {
    proto::Contender& contender = *plan.add_contenders();
    contender.set_method(one.method);
    contender.mutable_full_layers()->Add(one.full_layers.begin(), one.full_layers.end());
    contender.set_recall(one.judgement.recall);
    contender.set_error(one.judgement.error);
  }
  for (const Exchange& one : pick.exchanges) {
    proto::LayerExchange& exchange = *plan.add_exchanges();
    exchange.set_out(one.out);
    exchange.set_in(one.in);
    exchange.set_recall_before(one.before.recall);
    exchange.set_recall_after(one.after.recall);
    exchange.set_error_before(one.before.error);
    exchange.set_error_after(one.after.error);
  }
  return plan;
}

}  // namespace

proto::PlanSet discretize(const RunConfig& config, const LayerBudget& budget, const proto::GateSnapshot& gates,
                          JudgedSets* judged) {
  proto::PlanSet set;
  set.set_layers(budget.layers());
  set.set_budget(std::to_string(budget.limit) + " " + budget.unit);
  const SelectSection& select = config.stages.select;
  const int64_t closer = select.own.of<GateSettings>().closer_than(select.judge_samples);
  const auto judge_on = [judged](int64_t samples, bool with_text) -> Judge {
    return [=](const std::vector<int64_t>& kept) { return judged->judge(kept, samples, with_text); };
  };
  const Evidence evidence{.settings = select,
                          .budget = budget,
                          .gates = {gates.alpha().begin(), gates.alpha().end()},
                          .gate_noise = GateHistory(gates, select, budget).noise(),
                          .judge = judge_on(select.judge_samples, /*with_text=*/false),
                          .judge_closely = closer > 0 ? judge_on(closer, /*with_text=*/false) : Judge(),
                          .judge_with_text = judge_on(select.judge_samples, /*with_text=*/true)};
  for (const std::string& method : methods_of(config.stages)) {
    proto::HybridPlan& plan = *set.add_plans() = plan_by(method, evidence);
    if (selector_named(method).needs_judge(select)) *plan.mutable_judging() = judged->take_cost();
  }
  return set;
}

std::string judged_text(const proto::HybridPlan& plan) {
  std::string text = plan.name() + ":";
  for (const proto::Contender& one : plan.contenders())
    text +=
        fmt::format(" {} {}, recall {:.1f} %;", one.method(), fmt::join(one.full_layers(), " "), 100.0 * one.recall());
  return text + fmt::format(" kept {} after {} exchanges, {} sets judged", fmt::join(plan.full_layers(), " "),
                            plan.exchanges_size(), plan.judging().sets());
}

std::string hash_of(const proto::PlanSet& plans) {
  if (plans.plans().empty()) return "";
  proto::PlanSet hashed = plans;
  hashed.clear_provenance();
  for (proto::HybridPlan& plan : *hashed.mutable_plans()) plan.clear_judging();
  const std::string bytes = hashed.SerializeAsString();  // no maps: the same bits for the same plans
  return sha256_of_bytes(bytes.data(), bytes.size());
}

}  // namespace flashmorph
