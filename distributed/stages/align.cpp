#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/model/attention.h"
#include "core/ops/squared_distance.h"
#include "distributed/stages/weights.h"

namespace flashmorph {

StageCost align(MorphableModel& model, StageContext& context) {
  const AlignSection& section = context.config.stages.align;
  TrainedWeights branches(model.branch_parameters(), section, context.mesh);
  Training training("align", std::to_string(model.layer_count()) + " linear branches", section, {{model}}, branches,
                    context);
  if (context.config.mixer.init == "data" && section.branches.empty() && training.steps_done() == 0) {
    MicroBatches first = training.micro_batches();
    first.mine = {0, 1};  // the first of all, on every rank
    Pipeline(context.mesh)
        .stream(first.mine, state_shape(model, first.shape),
                [&](int64_t index, const at::Tensor& x, const PassOn& pass_on) {
                  pass_on(start_decays(model, first.batch(index), x));
                });
  }
  return branches.train(training, [&](const MicroBatches& batches) {
    return align_step(model, batches, section, context.mesh);  // the branches on the teacher's states
  });
}

StepResult align_step(const MorphableModel& model, const MicroBatches& batches, const AlignSection& section,
                      Mesh& mesh) {
  at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(model.placement().device));
  Pipeline(mesh).stream(batches.mine, state_shape(model, batches.shape),
                        [&](int64_t index, const at::Tensor& x, const PassOn& pass_on) {
                          align_micro_batch(model, batches.batch(index), x, batches.count, loss, pass_on);
                        });
  if (model.shard().sequence_parallel()) model.shard().all_reduce_sum(loss);  // each rank's is of its own tokens
  return over_mesh(loss.item<double>(), model.branch_parameters(), section, mesh);
}

void align_micro_batch(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD, int64_t micro_batches,
                       at::Tensor& loss, const PassOn& pass_on) {
  const c10::AutoGradMode no_gradient(false);
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const auto numbers =
      static_cast<double>(model.layer_count() * micro_batches * batch.tokens_BT.numel() * model.spec().hidden);
  const at::Tensor share = at::full({}, 1.0 / numbers, loss.options());  // of each squared error in the step's mean
  struct Lesson {
    int64_t layer;
    at::Tensor normed, attended;
    Arriving linear;
  };
  std::vector<at::Tensor> errors;
  const auto start_branch = [&](Lesson& lesson) {
    const c10::AutoGradMode gradient(true);
    lesson.linear = start_out_of_shards(model.linear_attention(lesson.layer, lesson.normed, positions), model.shard());
  };
  const auto learn = [&](Lesson& lesson) {
    const c10::AutoGradMode gradient(true);
    const at::Tensor error = squared_distance(lesson.linear.here(), lesson.attended);
    error.backward(share);
    errors.push_back(error.detach());
  };
  const bool is_waited_for = !go_in_turns(model) && !model.has_head();  // by the next rank, for the teacher's states
  std::vector<Lesson> later;
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const bool goes_on = l + 1 < model.layer_count();
    Lesson lesson{l, model.normed_input(l, x_BTD), {}, {}};
    // Each sum over the shards arrives while the next piece is computed: the linear branch behind the teacher's
    // attention, the teacher's feed-forward behind the branch, and the branch's gradients behind that.
    Arriving full = start_out_of_shards(model.full_attention(l, lesson.normed, positions), model.shard());
    if (!is_waited_for) start_branch(lesson);
    lesson.attended = full.here();
    at::Tensor h;
    Arriving fed;
    if (goes_on) fed = model.start_feed_forward(l, h = model.after_attention(l, x_BTD, lesson.attended));
    is_waited_for ? later.push_back(std::move(lesson)) : learn(lesson);
    if (goes_on) x_BTD = model.after_feed_forward(l, h, fed.here());
  }
  pass_on(x_BTD);
  for (Lesson& lesson : later) {
    start_branch(lesson);
    learn(lesson);
    lesson = Lesson();
  }
  loss.addcmul_(at::stack(errors).sum(), share);
}

at::Tensor start_decays(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD) {
  const c10::NoGradGuard no_gradient;
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const MorphableLayer& layer = model.layer(l);
    const at::Tensor normed = model.normed_input(l, x_BTD);
    layer.branch->start_decays(attention_distance(normed, *layer.attention, model.spec(), positions));
    if (l + 1 < model.layer_count()) x_BTD = model.feed_forward(l, model.attend(l, x_BTD, Route::full(), positions));
  }
  return x_BTD;
}

}  // namespace flashmorph
