#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "proto/run.pb.h"

namespace flashmorph {

// What a stage of so many ranks took of all of them.
constexpr double rank_hours(double seconds, int64_t ranks) { return seconds * static_cast<double>(ranks) / 3600.0; }

// What a run folder tells of its run, finished or not, read without touching it. Artifacts that are not there yet are
// empty.
struct RunRecord {
  std::filesystem::path folder;
  RunConfig config;
  std::string config_text;  // run.yaml
  int64_t layers = 0;       // of the model; 0 before discretize
  proto::RunState state;
  proto::GateSnapshot gates;
  proto::PlanSet plans;
  proto::Evaluation evaluation;
  std::vector<nlohmann::json> events, steps;  // the lines of events.jsonl and metrics.jsonl

  // BadInput when this is no run folder, or an artifact is damaged.
  static RunRecord open(const std::filesystem::path& folder);
  // Without what grows with the steps: gates, steps and evaluation are empty.
  static RunRecord outline(const std::filesystem::path& folder);

  bool finished() const;  // the last start went through to its end

  // The last known line of each step of a stage (a stage that was stopped begins again), in order. `what` as in the
  // lines: a plan's name, for distill and finetune; "": any.
  std::vector<nlohmann::json> steps_of(const std::string& stage, const std::string& what = "") const;
};

}  // namespace flashmorph
