#include "distributed/stages/select.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/morph/pass.h"
#include "core/ops/squared_distance.h"
#include "core/ops/tensor_parallel.h"
#include "core/select/by_gates.h"
#include "distributed/stages/gate_history.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/training.h"

namespace flashmorph {

std::pair<proto::GateSnapshot, StageCost> select_gates(const MorphableModel& model, const LayerBudget& budget,
                                                       StageContext& context) {
  const SelectSection& section = context.config.stages.select;
  const std::unique_ptr<Gates> gates = open_gates(model, context.mesh, budget, section);  // the mixture is the teacher
  GateHistory history({}, section, budget);
  gates->own = &history.message();
  Training training("select", std::to_string(model.layer_count()) + " gates", section,
                    {{model, "", /*mixes_attention=*/true}}, *gates, context);

  while (training.next()) {
    const StepResult found = training.run([&](const MicroBatches& batches) {
      return select_step(model, gates->alpha(), batches, section, context.mesh);  // the mixture beside the teacher
    });
    const PricedGates moved = gates->step(at::stack(found.gradients), training.learning_rate(), training.steps_done());
    history.record(found, moved);
    training.finish(found.loss, [&](const StepReport& report) {
      context.observer.gates_moved(report, history.last(), history.top_layers());
    });
    if (history.has_settled()) training.end_early("the pick has settled");
  }
  return {history.decided(), training.cost()};
}

StepResult select_step(const MorphableModel& model, const at::Tensor& alpha_l, const MicroBatches& batches,
                       const SelectSection& section, Mesh& mesh) {
  const auto& settings = section.own.of<GateSettings>();
  const ErrorOf of = settings.has_penalty() ? ErrorOf::states : ErrorOf::attention;
  std::vector<at::Tensor> leaves;  // a micro-batch's own each, so that its gradient stays apart
  std::vector<double> answers;
  const std::vector<at::Tensor> errors = Pipeline(mesh).forward_backward(
      batches.mine, state_shape(model, batches.shape), [&](int64_t index, const States& states) {
        const Batch batch = batches.batch(index);
        answers.push_back(static_cast<double>(batch.answers_BT.sum().item<int64_t>()));
        leaves.push_back(alpha_l.detach().clone().to(model.placement().device).set_requires_grad(true));
        return mix_beside_teacher(model, batch, mixing_routes(leaves.back(), alpha_l), states, of,
                                  section.parallel.recompute == "full");
      });

  // A row a micro-batch: d error / d alpha of this rank's layers, error, answers. The gradients are this tensor rank's
  // partial sums; what all tensor ranks have alike the first alone gives, so that adding rows over ranks is right.
  const bool first = model.shard().rank() == 0, has_error = first || model.shard().sequence_parallel();
  const int64_t own = alpha_l.numel();
  at::Tensor rows = at::zeros({static_cast<int64_t>(leaves.size()), own + 2}, at::kDouble);
  for (size_t m = 0; m < leaves.size(); ++m) {
    rows[m].narrow(0, 0, own).copy_(leaves[m].grad().cpu());
    if (has_error) rows[m][own].copy_(errors[m].cpu());
    if (first) rows[m][own + 1].fill_(answers[m]);
  }
  const at::Tensor sums = gather_in_sample_order(rows, batches.count, mesh).sum(0);

  const double lambda = settings.lambda();
  const at::Tensor error = sums[own] / sums[own + 1];
  const at::Tensor gradient = sums.narrow(0, 0, own) / sums[own + 1] + lambda;
  at::Tensor totals = at::stack({error, lambda * alpha_l.sum(), gradient.sum()});
  mesh.pipeline().all_reduce(totals, Reduction::sum);
  const double regularizer = totals[1].item<double>();
  return {totals[0].item<double>() + regularizer, gradient.unbind(), totals[2].item<double>(), regularizer};
}

namespace {

// Over the answers: the sum of what the attention has added to the states before it, and a little of the states.
at::Tensor power_of_attention(const at::Tensor& after, const at::Tensor& before) {
  return squared_distance(after, before) + 1e-6 * squared_distance(after, at::zeros_like(after));
}

}  // namespace

StageOutput mix_beside_teacher(const MorphableModel& model, const Batch& batch, const Routes& mixing,
                               const States& states, ErrorOf of, bool recompute) {
  const at::Tensor answers =
      own_tokens(batch.answers_BT, model.shard()).flatten().nonzero().flatten().to(model.placement().device);
  const auto look = [answers](const at::Tensor& h) { return read_rows(h, answers); };
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const at::Tensor embedded = model.has_embedding() ? model.embed(batch.tokens_BT) : at::Tensor();
  std::vector<at::Tensor> teachers, powers;  // by own layer; the teacher's states at the answers
  const std::shared_ptr<Pass> teacher =      // of either nothing reads the model's last feed-forward
      teacher_pass(model, model.has_embedding() ? embedded : states.teacher(), positions, /*last_feed_forward=*/false,
                   [&teachers, &powers, look, of](const at::Tensor& x, const at::Tensor& h) {
                     teachers.push_back(look(h).rows);
                     if (of == ErrorOf::attention) powers.push_back(power_of_attention(teachers.back(), look(x).rows));
                     return h;
                   });
  const auto pass_teacher_on = [&] {
    teacher->finish();
    states.pass_teacher_on(teacher->states());
  };
  if (!go_in_turns(model)) pass_teacher_on();
  Routes routes(static_cast<size_t>(model.layer_count()), Route::full());
  std::ranges::copy(mixing, routes.begin() + model.own_layers().first);
  const auto [x, mixed] = pass_through(Way::of(model, routes, positions, /*last_feed_forward=*/false),
                                       model.has_embedding() ? embedded : states.mixture(), teacher, recompute, look);
  if (go_in_turns(model)) pass_teacher_on();
  std::vector<at::Tensor> errors;
  for (size_t l = 0; l < mixed.size(); ++l) errors.push_back(squared_distance(mixed[l], teachers.at(l)));
  at::Tensor errors_l = at::stack(errors);
  if (of == ErrorOf::attention) {
    at::Tensor power_l = at::stack(powers);
    if (model.shard().sequence_parallel()) model.shard().all_reduce_sum(power_l);  // each rank's is of its own tokens
    errors_l = errors_l / power_l * batch.answers_BT.sum().item<double>();
  }
  return {x, errors_l.sum() / static_cast<double>(model.layer_count())};
}

}  // namespace flashmorph
