#include "distributed/stages/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace flashmorph {
namespace {

// With what is multiplied by in place of some.
Parameters weights_of(const std::vector<StageModel>& models, const FrozenInFloat8& in_float8) {
  Parameters all = in_float8.forms();
  for (const StageModel& one : models) std::ranges::copy(one.model.all_parameters(), std::back_inserter(all));
  return all;
}

// Of the stage that starts here.
SampleStream started(const std::string& stage, const std::string& what, const TrainingSection& section,
                     StageContext& context) {
  SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, stage);
  context.observer.started({stage, what, data.steps(), data.steps() * section.batch_tokens});
  return data;
}

}  // namespace

Training::Training(std::string stage, const std::string& what, const TrainingSection& section,
                   std::vector<StageModel> models, Trained& trained, StageContext& context)
    : stage_(std::move(stage)),
      section_(section),
      models_(std::move(models)),
      context_(context),
      data_(started(stage_, what, section, context)),
      rate_{section.lr.from, section.lr.to, data_.steps(), section.warmup_steps},
      samples_(
          data_,
          [this](int64_t step) -> SamplesAhead::Range {
            const MicroBatchRange mine = local_micro_batches(data_.micro_batches(step), context_.mesh);
            return {mine.first, mine.last};
          },
          /*page_locked=*/!models_.front().model.placement().device.is_cpu()),
      trained_(trained),
      in_float8_(models_, context.config.device),
      frozen_(weights_of(models_, in_float8_), context.config.health.weights_every),
      checkpoints_(context.checkpoints, context.config.checkpoint, context.mesh, trained_.regions, context.observer,
                   trained_.own),
      progress_(checkpoints_.resume()),
      watch_(progress_.seconds()),
      ranks_(stage_, steps_done(), data_.steps(), context) {
  if (context.config.device.frozen_dtype == "fp8")
    on_all_ranks(context.mesh.world(), [this] { in_float8_.require_some(); });
  if (const std::string summary = in_float8_.summary(); !summary.empty())
    context.observer.note(stage_ + "  " + summary);
  if (steps_done() == 0) return;
  trained_.resume_at(steps_done());
  context.observer.resumed(steps_done(), steps_done() * section.batch_tokens);
}

bool Training::next() {
  phase_.reset();
  if (steps_done() == data_.steps() || ends_early_) return false;
  phase_.emplace(context_.watchdog, Work::step, stage_, steps_done() + 1);
  checkpoints_.save_when_due(progress_);
  stop_if_asked();
  return true;
}

StepResult Training::run(const StepFunction& step) {
  const MicroBatches batches = micro_batches();
  const StepResult found = step(batches);
  if (!found.is_finite()) stop_at_non_finite(found, step, batches);
  return found;
}

void Training::finish(double loss, const Tell& tell) {
  const int64_t step = steps_done() + 1;
  const StepReport report{step, step * section_.batch_tokens, loss, learning_rate()};
  tell ? tell(report) : context_.observer.stepped(report);
  ranks_.finished(step);
  frozen_.check(stage_, step, context_);
  progress_.set_step(step);
  progress_.set_seconds(watch_.seconds());
  progress_.set_loss(loss);
}

void Training::end_early(const std::string& why) {
  ends_early_ = true;
  context_.observer.note(fmt::format("{}  {} after step {} of {}: {} tokens are not needed", stage_, why, steps_done(),
                                     data_.steps(), (data_.steps() - steps_done()) * section_.batch_tokens));
}

StageCost Training::cost() const { return {steps_done() * section_.batch_tokens, watch_.seconds()}; }

MicroBatches Training::micro_batches() {
  const int64_t step = steps_done(), count = data_.micro_batches(step);
  return {.mine = local_micro_batches(count, context_.mesh),
          .count = count,
          .shape = data_.micro_batch_shape(step),
          .batch = [this, step](int64_t index) { return samples_.micro_batch(step, index); }};
}

// With a checkpoint of this moment.
void Training::stop_if_asked() {
  const StopReason reason = context_.stop.agreed(context_.mesh.world(), checkpoints_.seconds_of_last_save());
  if (reason == StopReason::none) return;
  const Phase saving(context_.watchdog, Work::save, stage_, steps_done());
  const std::string saved = checkpoints_.save(progress_);
  throw Stopped("stopped in " + stage_ + " after step " + std::to_string(steps_done()) + ": " + text_of(reason) + "; " +
                saved);
}

}  // namespace flashmorph
