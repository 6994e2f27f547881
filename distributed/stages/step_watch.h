#pragma once

#include <set>
#include <string>

#include "distributed/health/rank_vitals.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// Every few steps of a training loop tells the observer how each rank does, and warns of a rank that is much slower
// than the others, once a stage. Collective where it looks.
class StepWatch {
 public:
  StepWatch(std::string stage, int64_t first_step, int64_t steps, StageContext& context);

  void finished(int64_t step);  // so many steps are done

  // What the ranks' figures of the steps since the last look say.
  void tell(const std::vector<RankVitals>& ranks, int64_t step);

 private:
  std::string stage_;
  int64_t seen_;  // steps that were done at the last look
  int64_t steps_;
  StageContext& context_;
  VitalSigns signs_;
  std::set<int64_t> warned_;
};

}  // namespace flashmorph
