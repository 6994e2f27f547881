#include "launcher/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/base/listed.h"

namespace flashmorph {
namespace {

constexpr double kPlainLineEvery = 10.0;  // seconds, when the line cannot be redrawn
constexpr double kRedrawEvery = 0.2;

std::string budget_text(const BudgetSection& budget, const ModelSpec& spec) {
  if (budget.counts_layers()) return fmt::format("{} of {}", budget.full_layers_of(spec.layers), spec.layers);
  if (budget.kv_bytes_per_token > 0)
    return fmt::format("{} bytes a token of {}", budget.kv_bytes_per_token, spec.layers);
  return fmt::format("{} ms a forward over {} tokens of {}", budget.milliseconds, budget.length, spec.layers);
}

}  // namespace

std::string short_count(int64_t count) {
  if (count >= 10'000'000) return fmt::format("{:.0f}M", static_cast<double>(count) / 1e6);
  if (count >= 1'000'000) return fmt::format("{:.2f}M", static_cast<double>(count) / 1e6);
  if (count >= 1'000) return fmt::format("{:.0f}k", static_cast<double>(count) / 1e3);
  return std::to_string(count);
}

std::string short_bytes(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
  if (bytes >= 1 << 10) return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / (1 << 10));
  return fmt::format("{} B", bytes);
}

std::string short_time(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string gate_bars(const std::vector<double>& gates, const std::vector<int64_t>& kept) {
  constexpr int kWidth = 32;
  std::string text;
  for (size_t layer = 0; layer < gates.size(); ++layer) {
    const int filled = static_cast<int>(std::lround(std::clamp(gates[layer], 0.0, 1.0) * kWidth));
    const bool keeps = std::find(kept.begin(), kept.end(), static_cast<int64_t>(layer)) != kept.end();
    text += fmt::format("  layer {:3}  {}{} {:.3f}{}\n", layer, std::string(filled, '#'),
                        std::string(kWidth - filled, '.'), gates[layer], keeps ? "  full" : "");
  }
  return text;
}

std::string aligned(const TextTable& table) {
  std::vector<size_t> widths;
  for (const auto& row : table) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (size_t r = 0; r < table.size(); ++r) {
    for (size_t c = 0; c < table[r].size(); ++c)
      text += c < 3 ? fmt::format("  {:<{}}", table[r][c], widths[c]) : fmt::format("  {:>{}}", table[r][c], widths[c]);
    text += '\n';
    if (r > 0) continue;
    for (const size_t width : widths) text += "  " + std::string(width, '-');
    text += '\n';
  }
  return text;
}

// Under mpirun the output goes through a terminal of its own, which forwards whole lines only.
Terminal::Terminal(std::FILE* out)
    : out_(out), live_(isatty(fileno(out)) != 0 && std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) {}

std::string mesh_text(const Layout& layout) {
  const MeshShape& mesh = layout.shape;
  std::string text =
      fmt::format("{} ranks = data {} x pipeline {} x tensor {}", mesh.ranks(), mesh.data, mesh.pipeline, mesh.tensor);
  if (mesh.sequence) text += " (tokens shared too)";
  for (int64_t p = 0; mesh.pipeline > 1 && p < mesh.pipeline; ++p) {
    text += fmt::format("\n          layers {}-{}: ranks", layout.layers[p].first, layout.layers[p].last - 1);
    for (int64_t d = 0; d < mesh.data; ++d) {
      const int64_t first = mesh.rank_at({d, p, 0});
      text += mesh.tensor == 1 ? fmt::format(" {}", first) : fmt::format(" {}-{}", first, first + mesh.tensor - 1);
    }
  }
  return text;
}

void Terminal::header(const RunConfig& config, const ModelSpec& spec, const StageLayouts& layouts,
                      const std::string& device, const std::string& config_file, const std::string& run_folder) {
  const auto& stages = config.stages;
  fmt::print(out_, "flashmorph-dist: {}\n", config.run.name);
  fmt::print(out_, "  model   {} ({}, {} layers, hidden {}, {} heads, {} kv heads)\n", config.model.path,
             spec.model_type, spec.layers, spec.hidden, spec.heads, spec.kv_heads);
  fmt::print(out_, "  device  {}; {}, {} thread(s) a rank\n", device, config.device.dtype, config.device.threads);
  fmt::print(out_, "  mesh    {}\n", mesh_text(layouts.front().second));
  for (const auto& [stage, layout] : layouts)
    if (!(layout == layouts.front().second)) fmt::print(out_, "          {}: {}\n", stage, mesh_text(layout));
  fmt::print(out_, "  budget  full attention in {} layers, {} attention in the rest\n",
             budget_text(config.budget, spec), config.mixer.kind);
  fmt::print(out_, "  tokens  align {}, select {}, distill {}, finetune {}\n", short_count(stages.align.tokens),
             short_count(stages.select.tokens), short_count(stages.distill.tokens),
             short_count(stages.finetune.tokens));
  fmt::print(out_, "  config  {} (every key spelled out in {}/run.yaml)\n\n", config_file, run_folder);
  std::fflush(out_);
}

void Terminal::started(const StageStart& start) {
  stage_ = start;
  steps_before_ = tokens_before_ = 0;
  watch_ = Stopwatch();
  shown_at_ = 0.0;
}

void Terminal::resumed(int64_t steps, int64_t tokens) {
  steps_before_ = steps;
  tokens_before_ = tokens;
  watch_ = Stopwatch();
  fmt::print(out_, "{:<9} {:<24} goes on after step {} of {}\n", stage_.stage, stage_.what, steps, stage_.steps);
  std::fflush(out_);
}

void Terminal::show_step(const StepReport& report, const std::string& tail) {
  const double seconds = std::max(watch_.seconds(), 1e-9);
  show(report.step,
       fmt::format("{:>6.0f} tokens/s  loss {:.5f}", static_cast<double>(report.tokens - tokens_before_) / seconds,
                   report.loss),
       tail);
  std::fflush(out_);
}

void Terminal::gates_moved(const StepReport& report, const proto::GateStep& gates,
                           const std::vector<int64_t>& top_layers) {
  show_step(report, "  top: " + listed(top_layers, " "));
  if (report.step == stage_.steps)
    fmt::print(out_, "\n{}\n", gate_bars({gates.alpha().begin(), gates.alpha().end()}, top_layers));
  std::fflush(out_);
}

void Terminal::recalled(const RecallReport& report) {
  show(report.step, fmt::format("recall {:.1f} %", 100.0 * report.recall));
  std::fflush(out_);
}

void Terminal::scored(const TaskReport& report) {
  show(report.step, fmt::format("{} {}: {:.1f} %", report.task, report.length, 100.0 * report.score));
  std::fflush(out_);
}

// A line of the stage's progress: the last one, and those in between now and then.
void Terminal::show(int64_t step, const std::string& what, const std::string& tail) {
  const bool last = step == stage_.steps;
  const double seconds = std::max(watch_.seconds(), 1e-9);
  if (!last && seconds - shown_at_ < (live_ ? kRedrawEvery : kPlainLineEvery)) return;
  shown_at_ = seconds;
  const double left = seconds / static_cast<double>(step - steps_before_) * static_cast<double>(stage_.steps - step);
  fmt::print(out_, "{}{:<9} {:<24} {:>4}/{:<4}  {}  {} {}{}{}", live_ ? "\r\x1b[2K" : "", stage_.stage, stage_.what,
             step, stage_.steps, what, last ? "took" : "left", short_time(last ? seconds : left), tail,
             live_ && !last ? "" : "\n");
}

void Terminal::exported(const std::string& format, int64_t tokens, double largest_difference) {
  fmt::print(out_, "{:<9} {}: read back, largest difference of a logit {:.1e} on {} tokens\n", "export", format,
             largest_difference, tokens);
  std::fflush(out_);
}

void Terminal::skipped(const std::string& stage, const std::string& where) {
  fmt::print(out_, "{:<9} already done: {}\n", stage, where);
  std::fflush(out_);
}

void Terminal::note(const std::string& note) {
  fmt::print(out_, "{}\n", note);
  std::fflush(out_);
}

void Terminal::warn(const std::string& warning) {
  fmt::print(out_, "warning: {}\n", warning);
  std::fflush(out_);
}

void Terminal::closing(const proto::PlanSet& plans, const proto::Evaluation& evaluation,
                       const std::string& export_folder, const std::string& report) {
  fmt::print(out_, "\n{}\n", aligned(results_table(plans, evaluation)));
  fmt::print(
      out_,
      "recall: right passkey words on held-out text, the right answer before each; greedy: written by the model\n");
  if (!export_folder.empty()) fmt::print(out_, "exported model: {}\n", export_folder);
  fmt::print(out_, "report: {}\n", report);
  std::fflush(out_);
}

}  // namespace flashmorph
