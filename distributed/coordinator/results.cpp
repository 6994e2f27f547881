#include "distributed/coordinator/results.h"

#include <cstdio>

namespace flashmorph {
namespace {

std::string fixed(double value, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string percent(int64_t right, int64_t all) {
  return all == 0 ? "-" : fixed(100.0 * static_cast<double>(right) / static_cast<double>(all), 1) + " %";
}

std::string percent(const proto::RecallCounts& counts) { return percent(counts.right_words(), counts.words()); }

std::string layers_of(const proto::PlanSet& plans, const std::string& name) {
  for (const proto::HybridPlan& plan : plans.plans()) {
    if (plan.name() != name) continue;
    std::string text;
    for (const int64_t layer : plan.full_layers()) text += (text.empty() ? "" : " ") + std::to_string(layer);
    return text.empty() ? "none" : text;
  }
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
    row.push_back(fixed(measured.perplexity(), 1));
    row.push_back(std::to_string(measured.kv_bytes_per_token()));
    table.push_back(row);
  }
  return table;
}

std::string model_card(const RunConfig& config, const proto::PlanSet& plans, const proto::Evaluation& evaluation) {
  const proto::HybridPlan& plan = plans.plans(0);
  std::string card = "# " + config.run.name + "\n\nA hybrid-attention model made by flashmorph-dist from `" +
                     config.model.path + "`: full attention in layers " + layers_of(plans, plan.name()) + " of " +
                     std::to_string(plans.layers()) + " (chosen by " + plan.name() + "), " + config.mixer.kind +
                     " attention in the others.\n\n";
  const TextTable table = results_table(plans, evaluation);
  for (size_t row = 0; row < table.size(); ++row) {
    for (const std::string& cell : table[row]) card += "| " + cell + " ";
    card += "|\n";
    if (row > 0) continue;
    for (size_t column = 0; column < table[0].size(); ++column) card += "|---";
    card += "|\n";
  }
  return card + "\nRecall: share of right passkey words on held-out text (" +
         std::to_string(config.stages.evaluate.passkeys) + " passkeys of " +
         std::to_string(config.stages.evaluate.words) +
         " words); greedy: the model writes its answers itself. Tokens: align " +
         std::to_string(config.stages.align.tokens) + ", select " + std::to_string(config.stages.select.tokens) +
         ", distill " + std::to_string(config.stages.distill.tokens) + ", finetune " +
         std::to_string(config.stages.finetune.tokens) + "; seed " + std::to_string(config.run.seed) + ".\n";
}

}  // namespace flashmorph
