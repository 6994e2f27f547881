#pragma once

#include <string>
#include <vector>

#include "core/io/tokenizer.h"
#include "core/morph/morphable_model.h"
#include "distributed/checkpoint/run_folder.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// Takes a run through its stages: align, select, discretize, distill, finetune, evaluate, export. A stage whose result is
// on disk is not done again, so a stopped run goes on where it was, on any mesh. Every rank calls run(); rank 0 decides,
// writes and reports.
class Coordinator {
 public:
  Coordinator(StageContext context, MorphableModel& model, RunFolder& folder);

  void run();

  const proto::PlanSet& plans() const { return plans_; }
  const proto::Evaluation& evaluation() const { return evaluation_; }

 private:
  void align_branches();
  void select_and_discretize();
  void measure(const MorphableModel& model, const Routes& routes, const std::string& name, const std::string& after);
  void train_hybrids();
  void train_hybrid(const proto::HybridPlan& plan);
  void export_hybrid();

  bool finished(const std::string& stage);
  void finish(const std::string& stage, const StageCost& cost);
  void read(const std::filesystem::path& file, google::protobuf::Message& message);
  void write(const std::filesystem::path& file, const google::protobuf::Message& message);
  proto::Provenance provenance(const std::string& stage, const StageCost& cost) const;
  Routes routes_of(const proto::HybridPlan& plan) const;
  std::string last_training() const;

  StageContext context_;
  MorphableModel& model_;
  RunFolder& folder_;
  proto::PlanSet plans_;
  proto::Evaluation evaluation_;
};

}  // namespace flashmorph
