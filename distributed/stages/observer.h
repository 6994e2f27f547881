#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "distributed/checkpoint/stage_checkpoints.h"
#include "distributed/health/rank_vitals.h"
#include "proto/run.pb.h"

namespace flashmorph {

struct StageStart {
  std::string stage;  // align, select, distill, finetune, evaluate
  std::string what;   // "12 linear branches", a plan's name
  int64_t steps = 0;
  int64_t tokens = 0;
};

struct StepReport {
  int64_t step = 0;  // finished steps
  int64_t tokens = 0;
  double loss = 0.0;
  double learning_rate = 0.0;
};

// What a model scored at one length; a step of evaluate.
struct ScoreReport {
  int64_t step = 0;
  std::string task;    // empty: recall, right words / words, teacher-forced
  int64_t length = 0;  // tokens
  double score = 0.0;  // in [0, 1]
};

// What a stage tells of itself while it runs; called on rank 0 only. The launcher shows and records it.
class StageObserver : public CheckpointListener {
 public:
  virtual void started(const StageStart& start) {}
  // The stage goes on from a checkpoint: so many steps and tokens are done already.
  virtual void resumed(int64_t steps, int64_t tokens) {}
  virtual void stepped(const StepReport& report) {}
  // A step of select, instead: the gates behind it, and what the gates of all steps so far would keep.
  virtual void gates_moved(const StepReport& report, const proto::GateStep& gates,
                           const std::vector<int64_t>& top_layers) {
    stepped(report);
  }
  virtual void scored(const ScoreReport& report) {}
  // How every rank did over the last steps; now and then while a stage trains.
  virtual void ranks(const std::vector<RankVitals>& vitals) {}
  // A folder in this format was read back and gave the hybrid's logits on so many tokens, up to this difference.
  virtual void exported(const std::string& format, int64_t tokens, double largest_difference) {}
  virtual void finished(const std::string& stage, double seconds) {}
  virtual void skipped(const std::string& stage, const std::string& why) {}
  virtual void measured(const proto::Measurement& measurement) {}
  virtual void note(const std::string& note) {}
};

}  // namespace flashmorph
