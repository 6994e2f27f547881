#include "distributed/stages/select.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/ops/squared_distance.h"
#include "core/select/by_gates.h"
#include "core/train/adamw.h"
#include "core/train/recompute.h"
#include "core/train/schedule.h"
#include "distributed/parallel/gradients.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/step_watch.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.data_ptr<double>(), host.data_ptr<double>() + host.numel()};
}

// A step of this rank's micro-batches: a row each, for gates_over_mesh. The gradients are this tensor rank's partial
// sums; what all tensor ranks have alike is given by the first alone, so that summing rows over ranks is right.
at::Tensor gate_gradient_rows(const MorphableModel& model, const SampleStream& data, SamplesAhead& samples,
                              int64_t step, MicroBatchRange mine, const at::Tensor& alpha_l, bool recompute,
                              Pipeline& pipeline) {
  std::vector<at::Tensor> leaves, rows;  // a leaf of its own for each micro-batch keeps its gradient apart
  std::vector<int64_t> answers;
  const std::vector<at::Tensor> errors = pipeline.forward_backward(
      mine, state_shape(model, data.micro_batch_shape(step)), /*with_teacher=*/true,
      [&](int64_t index, const States& x) {
        const Batch batch = samples.micro_batch(step, index);
        leaves.push_back(alpha_l.detach().clone().to(model.placement().device).set_requires_grad(true));
        answers.push_back(batch.answers_BT.sum().item<int64_t>());
        return mix_beside_teacher(model, batch, mixing_routes(leaves.back(), alpha_l), x, recompute);
      });
  const bool first = model.shard().rank() == 0, has_error = first || model.shard().sequence_parallel();
  for (size_t m = 0; m < leaves.size(); ++m)
    rows.push_back(at::cat({leaves[m].grad().cpu(), has_error ? errors[m].view({1}).cpu() : at::zeros({1}, at::kDouble),
                            at::full({1}, first ? static_cast<double>(answers[m]) : 0.0, at::kDouble)}));
  return at::stack(rows);
}

// This rank's mixing routes at their layers' places in the model.
Routes all_routes(const at::Tensor& alpha_l, const MorphableModel& model) {
  Routes routes(model.layer_count(), Route::full());
  std::ranges::copy(mixing_routes(alpha_l.to(model.placement().device), alpha_l),
                    routes.begin() + model.own_layers().first);
  return routes;
}

NamedGradients by_gate(const at::Tensor& gradient_l, const MorphableModel& model) {
  NamedGradients gradients;
  for (int64_t l = 0; l < gradient_l.numel(); ++l)
    gradients.emplace_back("the gate of layer " + std::to_string(model.own_layers().first + l), gradient_l[l]);
  return gradients;
}

// The gates after a step, for gates.json; a checkpoint carries them.
void record(const std::vector<double>& gates, double loss, proto::StageProgress& progress) {
  proto::GateStep& moved = *progress.add_gates();
  moved.set_step(progress.step());
  moved.set_loss(loss);
  moved.mutable_alpha()->Add(gates.begin(), gates.end());
}

GateTrajectory trajectory_of(const proto::StageProgress& progress) {
  GateTrajectory trajectory;
  for (const proto::GateStep& moved : progress.gates()) {
    trajectory.alpha.emplace_back(moved.alpha().begin(), moved.alpha().end());
    trajectory.loss.push_back(moved.loss());
  }
  return trajectory;
}

}  // namespace

GateSums gates_over_mesh(const at::Tensor& rows, int64_t micro_batches, const at::Tensor& alpha_l, double penalty,
                         Mesh& mesh) {
  const int64_t own = alpha_l.numel();
  const at::Tensor sums = gather_in_sample_order(rows, micro_batches, mesh).sum(0);
  const at::Tensor error = sums[own], answers = sums[own + 1];
  const at::Tensor gradient = sums.narrow(0, 0, own) / answers + penalty;
  at::Tensor totals = at::stack({error / answers, penalty * alpha_l.sum(), gradient.sum()});
  mesh.pipeline().all_reduce(totals, Reduction::sum);
  return {gradient, totals[0].item<double>(), totals[1].item<double>(), totals[2].item<double>()};
}

at::Tensor of_all_layers(const at::Tensor& own_l, const MorphableModel& model, Mesh& mesh) {
  at::Tensor all = at::zeros({model.layer_count()}, at::kDouble);
  all.narrow(0, model.own_layers().first, model.own_layers().count()).copy_(own_l);
  mesh.pipeline().all_reduce(all, Reduction::sum);
  return all;
}

Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l) {
  const std::vector<at::Tensor> gates = alpha_l.unbind();
  const std::vector<double> values = numbers(on_host_l);
  Routes routes;
  for (size_t l = 0; l < gates.size(); ++l) routes.push_back(Route::mixed(gates[l], values[l]));
  return routes;
}

StageOutput mix_beside_teacher(const MorphableModel& model, const Batch& batch, const Routes& mixing, States x,
                               bool recompute) {
  const Placement& placement = model.placement();
  const at::Tensor answers =
      own_tokens(batch.answers_BT, model.shard()).flatten().nonzero().flatten().to(placement.device);
  const auto at_answers = [answers](const at::Tensor& h) { return h.flatten(0, 1).index_select(0, answers); };
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const auto [first, last] = model.own_layers();
  at::Tensor error = at::zeros({}, at::TensorOptions(at::kDouble).device(placement.device));
  if (model.has_embedding()) x.teacher = x.mixture = model.embed(batch.tokens_BT);
  for (int64_t l = first; l < last; ++l) {
    const bool goes_on = l + 1 < model.layer_count();
    at::Tensor teacher;
    {
      const c10::NoGradGuard no_gradient;
      const at::Tensor h = model.attend(l, x.teacher, Route::full(), positions);
      teacher = at_answers(h);
      if (goes_on) x.teacher = model.feed_forward(l, h);
    }
    const auto mixed_layer = [&model, l, goes_on, positions, at_answers,
                              route = mixing.at(l - first)](const std::vector<at::Tensor>& inputs) {
      const at::Tensor h = model.attend(l, inputs[0], route, positions);
      std::vector<at::Tensor> outputs = {at_answers(h)};
      if (goes_on) outputs.push_back(model.feed_forward(l, h));
      return outputs;
    };
    const std::vector<at::Tensor> mixed =
        recompute ? recomputed(mixed_layer, {x.mixture}, {mixing.at(l - first).alpha}) : mixed_layer({x.mixture});
    error = error + squared_distance(mixed[0], teacher);
    if (goes_on) x.mixture = mixed[1];
  }
  return {x, error / static_cast<double>(model.layer_count())};
}

std::pair<GateTrajectory, StageCost> select_gates(const MorphableModel& model, const LayerBudget& budget,
                                                  StageContext& context) {
  const SelectSection& section = context.config.stages.select;
  const SampleStream data = start_stage("select", std::to_string(model.layer_count()) + " gates", section, context);

  at::Tensor alpha = at::ones({model.own_layers().count()}, at::kDouble);  // start exactly at the teacher
  AdamW optimizer({alpha}, {.beta1 = section.beta1, .beta2 = section.beta2});
  const CosineSchedule rate{section.lr.from, section.lr.to, data.steps(), section.warmup_steps};
  SamplesAhead samples = samples_ahead(data, model, context.mesh);
  Pipeline pipeline(context.mesh);
  const FrozenWeights frozen(model.all_parameters(), {}, context.config.health.weights_every);
  const bool is_first_replica = context.mesh.data_rank() == 0 && context.mesh.tensor_rank() == 0;
  StageCheckpoints checkpoints = checkpoints_of(
      context,
      regions_of("gates", optimizer.states()[0], model.own_layers().first, model.layer_count(), is_first_replica));
  proto::StageProgress progress = resumed(checkpoints, optimizer, section.batch_tokens, context);
  const Stopwatch watch(progress.seconds());
  StepWatch ranks("select", progress.step(), data.steps(), context);

  for (int64_t step = progress.step(); step < data.steps(); ++step) {
    const Phase phase(context.watchdog, Work::step, "select", step + 1);
    checkpoints.save_when_due(progress);
    stop_if_asked(context, "select", checkpoints, progress);
    const int64_t micro_batches = data.micro_batches(step);
    const at::Tensor rows =
        gate_gradient_rows(model, data, samples, step, local_micro_batches(micro_batches, context.mesh), alpha,
                           section.parallel.recompute == "full", pipeline);
    const GateSums sums =
        gates_over_mesh(rows, micro_batches, alpha, section.own.of<GateSettings>().gate_penalty, context.mesh);
    const double loss = sums.error + sums.regularizer;
    if (const StepNumbers numbers{loss, sums.gradient}; !numbers.are_finite())
      stop_at_numbers(numbers, "select", step, {{model, all_routes(alpha, model)}}, by_gate(sums.gradient_l, model),
                      data, context);

    optimizer.step({sums.gradient_l}, rate.at(step));
    alpha.clamp_(0.0, 1.0);

    const std::vector<double> gates = numbers(of_all_layers(alpha, model, context.mesh));
    context.observer.stepped({.step = step + 1,
                              .tokens = (step + 1) * section.batch_tokens,
                              .loss = loss,
                              .learning_rate = rate.at(step),
                              .regularizer = sums.regularizer,
                              .gates = gates,
                              .top_layers = best_layers(gates, budget)});
    ranks.finished(step + 1);
    frozen.check("select", step + 1, context);
    advance(progress, watch, loss);
    record(gates, loss, progress);
  }
  return {trajectory_of(progress), {data.steps() * section.batch_tokens, watch.seconds()}};
}

}  // namespace flashmorph
