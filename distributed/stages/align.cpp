#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/model/attention.h"
#include "core/ops/put_off_gradients.h"
#include "core/ops/squared_distance.h"
#include "core/ops/tensor_parallel.h"
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
  return over_mesh(loss, model.branch_parameters(), section, mesh);
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
    at::Tensor part;            // this rank's of the branch's output, which has the graph
    Arriving linear, gradient;  // the output; of the part
  };
  Shard& shard = model.shard();
  std::vector<at::Tensor> errors;
  const auto start_branch = [&](Lesson& lesson, const std::function<void()>& meanwhile) {
    const auto part = [&] {
      const c10::AutoGradMode gradient(true);
      return (lesson.part = model.linear_attention(lesson.layer, lesson.normed, positions)).detach();
    };
    lesson.linear = start_out_of_shards_beside(part, shard, meanwhile);
  };
  const auto compare = [&](Lesson& lesson) {
    const at::Tensor linear = lesson.linear.here();
    errors.push_back(squared_distance(linear, lesson.attended));
    lesson.gradient = start_gradient_of_out_of_shards(squared_distance_gradient(share, linear, lesson.attended), shard);
  };
  // Where a gather follows each sum over the shards, the products for weights are left for one of them to hide behind.
  PutOffGradients weights;
  const PutOffGradients::Scope putting_off(shard.sequence_parallel() ? &weights : nullptr);
  const auto learn = [&](Lesson& lesson) { lesson.part.backward(lesson.gradient.here()); };

  const bool is_waited_for = !go_in_turns(model) && !model.has_head();  // by the next rank, for the teacher's states
  std::vector<Lesson> later;
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  const auto [first, last] = model.own_layers();
  MorphableModel::Onward input{x_BTD, model.start_read(Sublayer::attention(first), x_BTD)};
  for (int64_t l = first; l < last; ++l) {
    const bool goes_on = l + 1 < model.layer_count();
    Lesson lesson{l, input.read.here(), {}, {}, {}, {}};
    MorphableModel::Onward attended;
    Arriving full, fed;
    // Each sum over the shards, and where tokens are shared the gather behind it, is under way while another piece is
    // computed: the teacher's attention behind the linear branch, the branch behind the teacher's feed-forward, and
    // that behind the branch's gradients.
    full = start_out_of_shards(model.full_attention(l, lesson.normed, positions), shard);
    const auto go_on = [&] {
      const c10::AutoGradMode no_gradient(false);
      lesson.attended = full.here();
      if (goes_on) attended = model.onward_from(Sublayer::attention(l), input.states, lesson.attended);
    };
    is_waited_for ? go_on() : start_branch(lesson, go_on);
    const auto compare_now = [&] {
      if (!is_waited_for) compare(lesson);
    };
    if (goes_on)
      fed = start_out_of_shards_beside([&] { return model.feed_forward_part(l, attended.read.here()); }, shard,
                                       compare_now);
    else
      compare_now();
    is_waited_for ? later.push_back(std::move(lesson)) : learn(lesson);
    if (l + 1 < last)
      input = model.onward_from(Sublayer::feed_forward(l), attended.states, fed.here());
    else if (goes_on)
      input.states = model.after(Sublayer::feed_forward(l), attended.states, fed.here());
    weights.work_out();
  }
  pass_on(input.states);
  for (Lesson& lesson : later) {
    start_branch(lesson, [] {});
    compare(lesson);
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
