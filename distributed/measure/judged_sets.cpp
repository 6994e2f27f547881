#include "distributed/measure/judged_sets.h"

#include "core/base/clock.h"
#include "core/base/endings.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {

JudgedSets::JudgedSets(std::filesystem::path file, Communicator& world, Work judge)
    : file_(std::move(file)), world_(world), judge_(std::move(judge)) {
  if (file_.empty()) return;
  proto::JudgedSets known;
  read_on_all_ranks(file_, known, world_);
  for (const proto::JudgedSet& one : known.sets())
    known_[{{one.full_layers().begin(), one.full_layers().end()}, one.samples()}] = one;
}

Judgement JudgedSets::judge(const Layers& full_layers, int64_t samples, bool with_text) {
  constexpr double kSaveEvery = 5.0;  // seconds
  const std::pair asked{full_layers, samples};
  auto found = known_.find(asked);
  if (found == known_.end() || (with_text && found->second.perplexity() == 0.0)) {
    try {
      found = known_.insert_or_assign(asked, judge_(full_layers, samples, with_text)).first;
    } catch (const Stopped&) {
      save();
      throw;
    }
    save(kSaveEvery);
  }
  const proto::JudgedSet& known = found->second;
  cost_.set_sets(cost_.sets() + 1);
  cost_.set_tokens(cost_.tokens() + known.cost().tokens());
  cost_.set_flop(cost_.flop() + known.cost().flop());
  cost_.set_seconds(cost_.seconds() + known.cost().seconds());
  return {.error = known.error(),
          .divergence = known.divergence(),
          .recall = known.recall(),
          .perplexity = known.perplexity()};
}

void JudgedSets::save(double after) {
  if (file_.empty()) return;
  on_all_ranks(world_, [&] {
    if (world_.rank() != 0 || unix_time() - saved_at_ < after) return;
    proto::JudgedSets all;
    for (const auto& [asked, judged] : known_) *all.add_sets() = judged;
    write_message(file_, all);
    saved_at_ = unix_time();
  });
}

proto::JudgeCost JudgedSets::take_cost() {
  proto::JudgeCost taken;
  taken.Swap(&cost_);
  return taken;
}

}  // namespace flashmorph
