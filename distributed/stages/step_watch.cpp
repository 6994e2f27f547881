#include "distributed/stages/step_watch.h"

#include <fmt/format.h>

#include "core/base/host_name.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {

StepWatch::StepWatch(std::string stage, int64_t first_step, int64_t steps, StageContext& context)
    : stage_(std::move(stage)),
      seen_(first_step),
      steps_(steps),
      context_(context),
      signs_(context.mesh.world(), gather_text(host_name(), context.mesh.world())) {}

void StepWatch::finished(int64_t step) {
  constexpr int64_t kLookEvery = 10;  // steps
  if (step % kLookEvery == 0 || step == steps_) tell(signs_.look(step - seen_), step);
}

void StepWatch::tell(const std::vector<RankVitals>& ranks, int64_t step) {
  context_.observer.ranks(ranks);
  const double factor = context_.config.health.straggler;
  for (const RankVitals& slow : stragglers(ranks, factor))
    if (warned_.insert(slow.rank).second)
      context_.observer.warn(fmt::format(
          "rank {} on {} is slow: {}, steps {} to {}, {:.3f} s a step of its own work; the ranks' median is {:.3f} s, "
          "and more than {:g} times as long is told (health.straggler)",
          slow.rank, slow.host, stage_, seen_ + 1, step, slow.own_seconds(), median_own_seconds(ranks), factor));
  seen_ = step;
}

}  // namespace flashmorph
