#include "distributed/stages/select.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/select/rules.h"
#include "core/train/adamw.h"
#include "core/train/schedule.h"
#include "distributed/parallel/gradients.h"

namespace flashmorph {
namespace {

using LayerStates = std::vector<at::Tensor>;  // H at the answer positions, [answers, D] a layer

LayerStates states_at(const MorphableModel& model, const Batch& batch, const Routes& routes) {
  const at::Tensor answers = batch.answers_BT.flatten().nonzero().flatten();
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  LayerStates states;
  at::Tensor x = model.embed(batch.tokens_BT);
  for (int64_t l = 0; l < model.layer_count(); ++l) {
    const at::Tensor h = model.attend(l, x, routes[l], positions);
    states.push_back(h.flatten(0, 1).index_select(0, answers));
    if (l + 1 < model.layer_count()) x = model.feed_forward(l, h);
  }
  return states;
}

LayerStates teacher_states(const MorphableModel& model, const Batch& batch) {
  const c10::NoGradGuard no_gradient;
  return states_at(model, batch, Routes(model.layer_count(), Route::full()));
}

LayerStates mixed_states(const MorphableModel& model, const Batch& batch, const at::Tensor& alpha_L) {
  Routes routes;
  for (const at::Tensor& alpha : alpha_L.unbind()) routes.push_back(Route::mixed(alpha));
  return states_at(model, batch, routes);
}

at::Tensor state_error(const LayerStates& mixed, const LayerStates& teacher) {
  at::Tensor error = at::zeros({}, at::kDouble);
  for (size_t l = 0; l < mixed.size(); ++l) error = error + (mixed[l] - teacher[l]).square().sum().to(at::kDouble);
  return error / static_cast<double>(mixed.size());
}

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.data_ptr<double>(), host.data_ptr<double>() + host.numel()};
}

}  // namespace

at::Tensor gate_gradient_row(const MorphableModel& model, const Batch& batch, const at::Tensor& alpha_L) {
  const int64_t layers = model.layer_count();
  const at::Tensor alpha = alpha_L.detach().clone().set_requires_grad(true);
  const LayerStates teacher = teacher_states(model, batch);
  const LayerStates mixed = mixed_states(model, batch, alpha);
  const at::Tensor error = state_error(mixed, teacher);
  error.backward();

  at::Tensor row = at::zeros({layers + 2}, at::kDouble);
  row.narrow(0, 0, layers).copy_(alpha.grad());
  if (model.shard().rank() == 0) {
    row[layers] = error.detach();
    row[layers + 1] = batch.answers_BT.sum();
  }
  return row;
}

std::pair<GateTrajectory, StageCost> select_gates(const MorphableModel& model, int64_t keep_full, StageContext& context) {
  const SelectSection& section = context.config.stages.select;
  const SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, "select");
  const int64_t layers = model.layer_count();
  context.observer.started({.stage = "select",
                            .what = std::to_string(layers) + " gates",
                            .steps = data.steps(),
                            .tokens = data.steps() * section.batch_tokens});

  at::Tensor alpha = at::ones({layers}, at::kDouble);  // start exactly at the teacher
  AdamW optimizer({alpha}, {.beta1 = section.beta1, .beta2 = section.beta2});
  const CosineSchedule rate{section.lr.from, section.lr.to, data.steps(), section.warmup_steps};
  GateTrajectory trajectory;
  const Stopwatch watch;
  int64_t tokens = 0;

  for (int64_t step = 0; step < data.steps(); ++step) {
    stop_if_asked(context, "select", step);
    const int64_t micro_batches = data.micro_batches(step);
    const MicroBatchRange mine = local_micro_batches(micro_batches, context.mesh);
    std::vector<at::Tensor> rows;
    for (int64_t index = mine.first; index < mine.last; ++index)
      rows.push_back(gate_gradient_row(model, data.micro_batch(step, index), alpha));

    const at::Tensor sums = gather_in_sample_order(at::stack(rows), micro_batches, context.mesh).sum(0);
    const double answers = sums[layers + 1].item<double>();
    const at::Tensor gradient = sums.narrow(0, 0, layers) / answers + section.gate_penalty;
    const double loss = sums[layers].item<double>() / answers + section.gate_penalty * alpha.sum().item<double>();
    require_finite(loss, "select", "loss", step);
    require_finite(gradient.sum().item<double>(), "select", "gates' gradient", step);

    optimizer.step({gradient}, rate.at(step));
    alpha.clamp_(0.0, 1.0);

    tokens += section.batch_tokens;
    trajectory.alpha.push_back(numbers(alpha));
    context.observer.stepped({.step = step + 1,
                              .tokens = tokens,
                              .loss = loss,
                              .learning_rate = rate.at(step),
                              .gates = trajectory.alpha.back(),
                              .top_layers = top_layers(trajectory.alpha.back(), keep_full)});
  }
  return {trajectory, {tokens, watch.seconds()}};
}

}  // namespace flashmorph
