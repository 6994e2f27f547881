#pragma once

#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "distributed/run/run_folder.h"
#include "distributed/stages/context.h"
#include "launcher/cost.h"

namespace flashmorph {

// The run folder's events.jsonl (one line a thing that happened) and metrics.jsonl (one line a step), appended and
// flushed line by line.
class Journal : public StageObserver {
 public:
  explicit Journal(const RunFolder& folder);

  void event(const std::string& name, const std::string& detail);
  void cost(const StageUse& use);

  void started(const StageStart& start) override;
  void resumed(int64_t steps, int64_t tokens) override;
  void stepped(const StepReport& report) override;
  void gates_moved(const StepReport& report, const proto::GateStep& gates,
                   const std::vector<int64_t>& top_layers) override;
  void recalled(const RecallReport& report) override;
  void scored(const TaskReport& report) override;
  void saved(int64_t step, double seconds) override;
  void exported(const std::string& format, int64_t tokens, double largest_difference) override;
  void finished(const std::string& stage, double seconds) override;
  void skipped(const std::string& stage, const std::string& where) override;
  void note(const std::string& note) override;
  void warn(const std::string& warning) override;

 private:
  nlohmann::ordered_json line_of(const StepReport& report) const;

  std::ofstream events_, metrics_;
  StageStart stage_;
};

// Tells several observers.
class Observers : public StageObserver {
 public:
  explicit Observers(std::vector<StageObserver*> all) : all_(std::move(all)) {}

  void started(const StageStart& start) override {
    for (StageObserver* one : all_) one->started(start);
  }
  void resumed(int64_t steps, int64_t tokens) override {
    for (StageObserver* one : all_) one->resumed(steps, tokens);
  }
  void stepped(const StepReport& report) override {
    for (StageObserver* one : all_) one->stepped(report);
  }
  void gates_moved(const StepReport& report, const proto::GateStep& gates,
                   const std::vector<int64_t>& top_layers) override {
    for (StageObserver* one : all_) one->gates_moved(report, gates, top_layers);
  }
  void recalled(const RecallReport& report) override {
    for (StageObserver* one : all_) one->recalled(report);
  }
  void scored(const TaskReport& report) override {
    for (StageObserver* one : all_) one->scored(report);
  }
  void saved(int64_t step, double seconds) override {
    for (StageObserver* one : all_) one->saved(step, seconds);
  }
  void ranks(const std::vector<RankVitals>& vitals) override {
    for (StageObserver* one : all_) one->ranks(vitals);
  }
  void exported(const std::string& format, int64_t tokens, double largest_difference) override {
    for (StageObserver* one : all_) one->exported(format, tokens, largest_difference);
  }
  void finished(const std::string& stage, double seconds) override {
    for (StageObserver* one : all_) one->finished(stage, seconds);
  }
  void skipped(const std::string& stage, const std::string& where) override {
    for (StageObserver* one : all_) one->skipped(stage, where);
  }
  void measured(const proto::Measurement& measurement) override {
    for (StageObserver* one : all_) one->measured(measurement);
  }
  void note(const std::string& note) override {
    for (StageObserver* one : all_) one->note(note);
  }
  void warn(const std::string& warning) override {
    for (StageObserver* one : all_) one->warn(warning);
  }

 private:
  std::vector<StageObserver*> all_;
};

}  // namespace flashmorph
