#pragma once

#include <cstdio>
#include <string>

#include "core/model/model_spec.h"
#include "distributed/parallel/layout.h"
#include "distributed/run/results.h"
#include "distributed/stages/context.h"

namespace flashmorph {

using StageLayouts = std::vector<std::pair<std::string, Layout>>;

// What a person sees of a run: a header, one progress line a stage (redrawn on a terminal, a plain line now and then
// elsewhere), the gates at the end of select, warnings, and the closing table.
class Terminal : public StageObserver {
 public:
  explicit Terminal(std::FILE* out);

  void header(const RunConfig& config, const ModelSpec& spec, const StageLayouts& layouts, const std::string& device,
              const std::string& config_file, const std::string& run_folder);
  void closing(const proto::PlanSet& plans, const proto::Evaluation& evaluation, const std::string& export_folder,
               const std::string& report);

  void started(const StageStart& start) override;
  void resumed(int64_t steps, int64_t tokens) override;
  void stepped(const StepReport& report) override { show_step(report, ""); }
  void gates_moved(const StepReport& report, const proto::GateStep& gates,
                   const std::vector<int64_t>& top_layers) override;
  void recalled(const RecallReport& report) override;
  void scored(const TaskReport& report) override;
  void exported(const std::string& format, int64_t tokens, double largest_difference) override;
  void skipped(const std::string& stage, const std::string& where) override;
  void note(const std::string& note) override;
  void warn(const std::string& warning) override;

 private:
  void show_step(const StepReport& report, const std::string& tail);
  void show(int64_t step, const std::string& what, const std::string& tail = "");

  std::FILE* out_;
  bool live_;  // the line can be redrawn
  StageStart stage_;
  int64_t steps_before_ = 0, tokens_before_ = 0;  // of the stage, in earlier starts
  Stopwatch watch_;
  double shown_at_ = 0.0;
};

// "1.2M", "256k", "96".
std::string short_count(int64_t count);
// "96 B", "1.5 KiB", "12.0 MiB", "3.25 GiB".
std::string short_bytes(int64_t bytes);
// "2:05", "1:02:05".
std::string short_time(double seconds);
// "64 ranks = data 8 x pipeline 4 x tensor 2", then a line for each pipeline rank: its layers and its ranks.
std::string mesh_text(const Layout& layout);
// A bar per gate, 0 to 1: one row a layer, the kept ones marked.
std::string gate_bars(const std::vector<double>& gates, const std::vector<int64_t>& kept);
// Columns aligned, the first to the left, numbers to the right.
std::string aligned(const TextTable& table);

}  // namespace flashmorph
