#include "distributed/run/results.h"

#include <fmt/format.h>

#include "core/base/listed.h"
#include "distributed/run/run_record.h"

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

std::string markdown(const TextTable& table) {
  std::string text;
  for (size_t row = 0; row < table.size(); ++row) {
    for (const std::string& cell : table[row]) text += "| " + cell + " ";
    text += "|\n";
    if (row > 0) continue;
    for (size_t column = 0; column < table[0].size(); ++column) text += "|---";
    text += "|\n";
  }
  return text;
}

// What the long-context tasks gave, where the run asked any.
TextTable task_table(const proto::Evaluation& evaluation) {
  TextTable table(1, {"model", "after", "task", "tokens", "score"});
  for (const proto::Measurement& measured : evaluation.measurements())
    for (const proto::TaskScore& task : measured.tasks())
      table.push_back({measured.name(), measured.after().empty() ? "-" : measured.after(), task.task(),
                       std::to_string(task.length()), fmt::format("{:.1f}", 100.0 * task.score())});
  return table;
}

// What every stage took, and all of them.
TextTable cost_table(const StageResults& finished) {
  TextTable table(1, {"stage", "tokens", "seconds", "ranks", "rank-hours"});
  double hours = 0.0;
  for (const proto::StageResult& stage : finished) {
    const double taken = rank_hours(stage.seconds(), stage.ranks());
    hours += taken;
    table.push_back({stage.stage(), std::to_string(stage.tokens()), fmt::format("{:.1f}", stage.seconds()),
                     std::to_string(stage.ranks()), fmt::format("{:.4f}", taken)});
  }
  table.push_back({"in all", "", "", "", fmt::format("{:.4f}", hours)});
  return table;
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

std::string model_card(const RunConfig& config, const proto::PlanSet& plans, const proto::Evaluation& evaluation,
                       const StageResults& finished) {
  const proto::HybridPlan& plan = plans.plans(0);
  const EvaluateSection& evaluate = config.stages.evaluate;
  const TextTable tasks = task_table(evaluation);
  return fmt::format(
      "# {}\n\nA hybrid-attention model made by flashmorph-dist from `{}`: full attention in layers {} of {} (chosen "
      "by {} for a budget of {}), {} attention in the others.\n\n"
      "## What it recalls\n\n{}\n"
      "Recall: share of right passkey words on held-out text ({} passkeys of {} words); greedy: the model writes its "
      "answers itself. KV bytes/token: of the full layers, at {}.\n\n{}"
      "## How it was made\n\n{}\nOn {} device, in {}. The run's configuration, whole:\n\n```yaml\n{}```\n",
      config.run.name, config.model.path, layers_of(plans, plan.name()), plans.layers(), plan.name(), plans.budget(),
      config.mixer.kind, markdown(results_table(plans, evaluation)), evaluate.passkeys, evaluate.words,
      config.device.dtype, tasks.size() > 1 ? markdown(tasks) + "\n" : "", markdown(cost_table(finished)),
      config.device.kind, config.device.dtype, config.to_yaml());
}

}  // namespace flashmorph
