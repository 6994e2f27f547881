#include "distributed/stages/trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>

#include "core/train/adamw.h"
#include "core/train/schedule.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/zero.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/step_watch.h"

namespace flashmorph {
namespace {

NamedGradients named(const std::vector<at::Tensor>& gradients, const Parameters& parameters) {
  NamedGradients all;
  for (size_t i = 0; i < gradients.size(); ++i) all.emplace_back(parameters[i].name, gradients[i]);
  return all;
}

Parameters weights_of(const std::vector<ForwardPass>& passes) {
  Parameters all;
  for (const ForwardPass& pass : passes) std::ranges::copy(pass.model.all_parameters(), std::back_inserter(all));
  return all;
}

}  // namespace

SampleStream start_stage(const std::string& stage, const std::string& what, const TrainingSection& section,
                         StageContext& context) {
  SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, stage);
  context.observer.started(
      {.stage = stage, .what = what, .steps = data.steps(), .tokens = data.steps() * section.batch_tokens});
  return data;
}

StageCost train(const std::string& stage, const Parameters& parameters, const std::vector<ForwardPass>& passes,
                const TrainingSection& section, const SampleStream& data, StageContext& context,
                const StepLoss& loss_of) {
  Mesh& mesh = context.mesh;
  for (const Parameter& parameter : parameters) parameter.value.set_requires_grad(true);
  const auto whole = single_communicator("data");
  DataShardedAdamW optimizer(values_of(parameters),
                             {.beta1 = section.beta1, .beta2 = section.beta2, .weight_decay = section.weight_decay},
                             section.parallel.zero ? mesh.data() : *whole);
  const CosineSchedule rate{section.lr.from, section.lr.to, data.steps(), section.warmup_steps};
  const FrozenWeights frozen(weights_of(passes), parameters, context.config.health.weights_every);
  StageCheckpoints checkpoints =
      checkpoints_of(context, regions_of(parameters, optimizer, mesh, section.parallel.zero));
  proto::StageProgress progress = resumed(checkpoints, optimizer, section.batch_tokens, context);
  const Stopwatch watch(progress.seconds());
  StepWatch ranks(stage, progress.step(), data.steps(), context);

  for (int64_t step = progress.step(); step < data.steps(); ++step) {
    const Phase phase(context.watchdog, Work::step, stage, step + 1);
    checkpoints.save_when_due(progress);
    stop_if_asked(context, stage, checkpoints, progress);
    const double part = loss_of(step, local_micro_batches(data.micro_batches(step), mesh));
    const auto [loss, gradients, norm] = over_mesh(part, parameters, section, mesh);
    if (const StepNumbers numbers{loss, norm}; !numbers.are_finite())
      stop_at_numbers(numbers, stage, step, passes, named(gradients, parameters), data, context);
    optimizer.step(gradients, rate.at(step));
    for (const Parameter& parameter : parameters) parameter.value.mutable_grad().reset();

    context.observer.stepped({.step = step + 1,
                              .tokens = (step + 1) * section.batch_tokens,
                              .loss = loss,
                              .learning_rate = rate.at(step),
                              .gates = {},
                              .top_layers = {}});
    ranks.finished(step + 1);
    frozen.check(stage, step + 1, context);
    advance(progress, watch, loss);
  }
  for (const Parameter& parameter : parameters) parameter.value.set_requires_grad(false);
  return {data.steps() * section.batch_tokens, watch.seconds()};
}

MeshStep over_mesh(double part_of_loss, const Parameters& parameters, const TrainingSection& section, Mesh& mesh) {
  at::Tensor loss = at::full({1}, part_of_loss, at::kDouble);
  mesh.pipeline().all_reduce(loss, Reduction::sum);  // of the layers
  mesh.data().all_reduce(loss, Reduction::sum);      // of the samples; tensor ranks have the same numbers
  const DataSum over_data = section.parallel.zero ? DataSum::own_partition : DataSum::whole;
  std::vector<at::Tensor> gradients = reduced_gradients(parameters, mesh, over_data);
  const double norm = clip_gradients(parameters, gradients, section.clip, mesh, over_data);
  return {loss.item<double>(), std::move(gradients), norm};
}

SamplesAhead samples_ahead(const SampleStream& data, const MorphableModel& model, const Mesh& mesh) {
  const auto mine = [&](int64_t step) -> SamplesAhead::Range {
    const MicroBatchRange range = local_micro_batches(data.micro_batches(step), mesh);
    return {range.first, range.last};
  };
  return SamplesAhead(data, mine, /*page_locked=*/!model.placement().device.is_cpu());
}

StateShape state_shape(const MorphableModel& model, std::pair<int64_t, int64_t> rows_and_tokens) {
  const Placement& placement = model.placement();
  const auto [rows, tokens] = rows_and_tokens;
  return {{rows, model.shard().own_count(tokens), model.spec().hidden},
          at::TensorOptions(placement.dtype).device(placement.device)};
}

}  // namespace flashmorph
