#include "distributed/coordinator/results.h"

#include <fmt/format.h>

#include "core/base/listed.h"

namespace flashmorph {
namespace {

std::string percent(int64_t right, int64_t all) {
  return all == 0 ? "-" : fmt::format("{:.1f} %", 100.0 * static_cast<double>(right) / static_cast<double>(all));
}

std::string percent(const proto::RecallCounts& counts) { return percent(counts.right_words(), counts.words()); }

std::string layers_of(const proto::PlanSet& plans, const std::string& name) {
  for (const proto::HybridPlan& plan : plans.plans())
    if (plan.name() == name) return plan.full_layers().empty() ? "none" : listed(plan.full_layers(), " ");
  return "all";
}

// Over all lengths; `of` picks the teacher-forced or the greedy counts.
template <class Counts>
std::string mean_recall(const proto::Measurement& measured, Counts of) {
  int64_t words = 0, right = 0;
  for (const proto::RecallAtLength& recall : measured.recall()) {
    words += of(recall).words();
    right += of(recall).right_words();
  }
  return percent(right, words);
}

}  // namespace

TextTable results_table(const proto::PlanSet& plans, const proto::Evaluation& evaluation) {
  TextTable table(1, {"model", "after", "full attention in", "recall"});
  if (evaluation.measurements_size() > 0)
    for (const proto::RecallAtLength& recall : evaluation.measurements(0).recall())
      table[0].push_back("at " + std::to_string(recall.length()));
  for (const char* title : {"greedy", "perplexity", "KV bytes/token"}) table[0].push_back(title);

  for (const proto::Measurement& measured : evaluation.measurements()) {
    std::vector<std::string> row = {measured.name(), measured.after().empty() ? "-" : measured.after(),
                                    layers_of(plans, measured.name()),
                                    mean_recall(measured, [](const auto& recall) { return recall.teacher_forced(); })};
    for (const proto::RecallAtLength& recall : measured.recall()) row.push_back(percent(recall.teacher_forced()));
    row.push_back(mean_recall(measured, [](const auto& recall) { return recall.greedy(); }));
    row.push_back(fmt::format("{:.1f}", measured.perplexity()));
    row.push_back(std::to_string(measured.kv_bytes_per_token()));
    table.push_back(row);
  }
  return table;
}

std::string model_card(const RunConfig& config, const proto::PlanSet& plans, const proto::Evaluation& evaluation) {
  const proto::HybridPlan& plan = plans.plans(0);
  const StagesSection& stages = config.stages;
  TextTable table = results_table(plans, evaluation);
  table.insert(table.begin() + 1, std::vector<std::string>(table[0].size(), "---"));
  std::string rows;
  for (const std::vector<std::string>& row : table) rows += fmt::format("| {} |\n", listed(row, " | "));
  return fmt::format(
      "# {}\n\nA hybrid-attention model made by flashmorph-dist from `{}`: full attention in layers {} of {} (chosen "
      "by {}), {} attention in the others.\n\n{}\nRecall: share of right passkey words on held-out text ({} passkeys "
      "of {} words); greedy: the model writes its answers itself. Tokens: align {}, select {}, distill {}, finetune "
      "{}; seed {}.\n",
      config.run.name, config.model.path, layers_of(plans, plan.name()), plans.layers(), plan.name(), config.mixer.kind,
      rows, stages.evaluate.passkeys, stages.evaluate.words, stages.align.tokens, stages.select.tokens,
      stages.distill.tokens, stages.finetune.tokens, config.run.seed);
}

}  // namespace flashmorph
