#include "distributed/stages/trainer.h"

#include <ATen/ATen.h>

#include "core/train/adamw.h"
#include "core/train/schedule.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/zero.h"

namespace flashmorph {
namespace {

// Over the layers and the samples; tensor ranks have the same numbers.
double over_pipeline_and_data(double part, Mesh& mesh) {
  at::Tensor sum = at::full({1}, part, at::kDouble);
  mesh.pipeline().all_reduce(sum, Reduction::sum);
  mesh.data().all_reduce(sum, Reduction::sum);
  return sum.item<double>();
}

std::vector<at::Tensor> values_of(const Parameters& parameters) {
  std::vector<at::Tensor> values;
  for (const Parameter& parameter : parameters) values.push_back(parameter.value);
  return values;
}

}  // namespace

StageCost train(const std::string& stage, const Parameters& parameters, const TrainingSection& section,
                const SampleStream& data, StageContext& context, const StepLoss& loss_of) {
  Mesh& mesh = context.mesh;
  for (const Parameter& parameter : parameters) parameter.value.set_requires_grad(true);
  const DataSum over_data = section.parallel.zero ? DataSum::own_stretch : DataSum::whole;
  const auto whole = single_communicator("data");
  DataShardedAdamW optimizer(values_of(parameters),
                             {.beta1 = section.beta1, .beta2 = section.beta2, .weight_decay = section.weight_decay},
                             section.parallel.zero ? mesh.data() : *whole);
  const CosineSchedule rate{section.lr.from, section.lr.to, data.steps(), section.warmup_steps};
  const Stopwatch watch;
  int64_t tokens = 0;

  for (int64_t step = 0; step < data.steps(); ++step) {
    stop_if_asked(context, stage, step);
    const double loss = over_pipeline_and_data(loss_of(step, local_micro_batches(data.micro_batches(step), mesh)), mesh);

    std::vector<at::Tensor> gradients = reduced_gradients(parameters, mesh, over_data);
    const double norm = clip_gradients(parameters, gradients, section.clip, mesh, over_data);
    require_finite(loss, stage, "loss", step);
    require_finite(norm, stage, "gradient's norm", step);
    optimizer.step(gradients, rate.at(step));
    for (const Parameter& parameter : parameters) parameter.value.mutable_grad().reset();

    tokens += section.batch_tokens;
    context.observer.stepped(
        {.step = step + 1, .tokens = tokens, .loss = loss, .learning_rate = rate.at(step), .gates = {}, .top_layers = {}});
  }
  for (const Parameter& parameter : parameters) parameter.value.set_requires_grad(false);
  return {tokens, watch.seconds()};
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
  return {{rows, model.shard().own_count(tokens), model.spec().hidden}, at::TensorOptions(placement.dtype).device(placement.device)};
}

}  // namespace flashmorph
