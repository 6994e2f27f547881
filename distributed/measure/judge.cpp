#include "distributed/measure/judge.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/eval/recall.h"
#include "core/ops/squared_distance.h"
#include "core/ops/tensor_parallel.h"
#include "core/ops/vocabulary_loss.h"
#include "core/rehearsal/work_counter.h"
#include "core/select/by_gates.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/step.h"

namespace flashmorph {
namespace {

constexpr uint64_t kJudge = 0x6a756467;  // keeps these samples apart from those of every other stage

// What an item comes to.
enum Sum { kError, kAnswers, kDivergence, kRight, kWords, kNegativeLog, kPlain, kSums };

}  // namespace

Sample judge_sample(int64_t index, const StageContext& context) {
  const EvaluateSection& asked = context.config.stages.evaluate;
  KeyedRandom random{static_cast<uint64_t>(context.config.run.seed), kJudge, static_cast<uint64_t>(index)};
  return context.passkeys.make(context.corpus.held_out().drawn(random), judged_length(index / kSamplesAtATime, asked),
                               asked.passkeys, asked.words, random);
}

int64_t judged_length(int64_t forward, const EvaluateSection& section) {
  return section.lengths[static_cast<size_t>(forward) % section.lengths.size()];
}

int64_t layers_alike(const Routes& a, const Routes& b) {
  return std::ranges::mismatch(a, b, {}, &Route::kind, &Route::kind).in1 - a.begin();
}

int64_t layers_between_kept(int64_t layers, int64_t bytes, int64_t most) {
  const int64_t states = std::min(layers, most / std::max<int64_t>(1, bytes));
  return states > 0 ? (layers + states - 1) / states : 0;
}

int64_t HardMixtureJudge::most_kept_by_each(const SelectSection& section) {
  return kMostKept / (section.own.of<GateSettings>().closer_than(section.judge_samples) > 0 ? 2 : 1);
}

HardMixtureJudge::HardMixtureJudge(const MorphableModel& model, StageContext& context, int64_t samples,
                                   int64_t most_kept)
    : model_(model),
      context_(context),
      samples_(samples),
      count_((samples + kSamplesAtATime - 1) / kSamplesAtATime),
      own_(count_, context.mesh) {
  on_all_ranks(context.mesh.world(), [&] {  // there may be no place for the passkeys
    for (int64_t index = own_.first; index < own_.last; ++index) mine_.push_back(item_of(index));
  });
  stride_ = layers_between_kept(model.own_layers().count(), bytes_behind_a_layer(), most_kept);
  at::Tensor unused = at::zeros({count_, kSums}, at::kDouble);
  judge_items(Routes(static_cast<size_t>(model.layer_count()), Route::full()), Pass::teacher, unused);
}

proto::JudgedSet HardMixtureJudge::judge(const std::vector<int64_t>& full_layers, bool with_text) {
  const Stopwatch watch;
  const Routes routes = routes_that_keep(full_layers, model_.layer_count());

  at::Tensor rows = at::zeros({count_, kSums}, at::kDouble), cost = at::zeros({2}, at::kDouble);
  {
    const WorkCounter work;
    judge_items(routes, with_text ? Pass::text : Pass::answers, rows);
    if (model_.has_embedding() && model_.shard().rank() == 0)
      for (const Item& item : mine_) cost[0] += static_cast<double>(item.batch.tokens_BT.numel());
    cost[1] = work.flop();
  }
  context_.mesh.data().all_reduce(rows, Reduction::sum);  // a row is made by one data rank
  context_.mesh.pipeline().all_reduce(rows, Reduction::sum);
  context_.mesh.world().all_reduce(cost, Reduction::sum);
  const at::Tensor sums = rows.sum(0);
  const auto sum = [&](Sum of) { return sums[of].item<double>(); };

  proto::JudgedSet judged;
  judged.mutable_full_layers()->Add(full_layers.begin(), full_layers.end());
  judged.set_samples(samples_);
  judged.set_error(sum(kError) / sum(kAnswers));
  judged.set_divergence(sum(kDivergence) / sum(kAnswers));
  judged.set_recall(sum(kRight) / sum(kWords));
  if (with_text) judged.set_perplexity(std::exp(sum(kNegativeLog) / sum(kPlain)));
  judged.mutable_cost()->set_sets(1);
  judged.mutable_cost()->set_tokens(static_cast<int64_t>(cost[0].item<double>()));
  judged.mutable_cost()->set_flop(cost[1].item<double>());
  judged.mutable_cost()->set_seconds(watch.seconds());
  return judged;
}

HardMixtureJudge::Item HardMixtureJudge::item_of(int64_t index) const {
  Item item;
  const int64_t first = index * kSamplesAtATime;
  for (int64_t i = first; i < std::min(samples_, first + kSamplesAtATime); ++i)
    item.samples.push_back(judge_sample(i, context_));
  item.batch = batch_of(item.samples);
  item.positions = model_.positions(0, item.batch.tokens_BT.size(1), item.batch.documents);
  item.asked = item.batch.answers_BT.flatten().nonzero().flatten();
  item.answers = own_tokens(item.batch.answers_BT, model_.shard()).flatten().nonzero().flatten();
  item.answers = item.answers.to(model_.placement().device);
  return item;
}

int64_t HardMixtureJudge::bytes_behind_a_layer() const {
  int64_t bytes = 0;
  for (const Item& item : mine_)
    bytes += item.batch.tokens_BT.size(0) * model_.shard().own_count(item.batch.tokens_BT.size(1)) *
             model_.spec().hidden * static_cast<int64_t>(c10::elementSize(model_.placement().dtype));
  return bytes;
}

void HardMixtureJudge::judge_items(const Routes& routes, Pass pass, at::Tensor& rows) {
  const int64_t from = layers_alike(last_, routes);
  for (int64_t i = 0; i < std::ssize(mine_); ++i) {
    at::Tensor sums = rows[own_.first + i];
    through_layers(mine_[i], routes, from, pass, sums);
  }
  last_ = routes;
}

// Where this rank's layers go on from, at most layer `from`: the last state that was kept until there, or its input.
HardMixtureJudge::Kept HardMixtureJudge::resumed(Item& item, at::Tensor x, int64_t& from) const {
  item.kept.erase(item.kept.upper_bound(from), item.kept.end());
  if (!item.kept.empty()) {
    from = item.kept.rbegin()->first;
    return item.kept.rbegin()->second;
  }
  from = model_.own_layers().first;
  if (model_.has_embedding()) x = model_.embed(item.batch.tokens_BT);
  return {x, at::zeros({}, at::TensorOptions(at::kDouble).device(model_.placement().device))};
}

// This rank's layers, and what they come to: added to `sums`. The teacher's states are kept instead.
void HardMixtureJudge::through_layers(Item& item, const Routes& routes, int64_t from, Pass pass,
                                      at::Tensor& sums) const {
  const c10::NoGradGuard no_gradient;
  const auto [first, last] = model_.own_layers();
  Kept now;
  const auto layers = [&](int64_t, const at::Tensor& input, const PassOn& pass_on) {
    now = resumed(item, input, from);
    for (int64_t l = from; l < last; ++l) {
      const at::Tensor h = model_.attend(l, now.x, routes[static_cast<size_t>(l)], item.positions);
      const at::Tensor at_answers = h.flatten(0, 1).index_select(0, item.answers);
      if (pass == Pass::teacher)
        item.teacher.push_back(at_answers);
      else
        now.error = now.error + squared_distance(at_answers, item.teacher[static_cast<size_t>(l - first)]);
      now.x = model_.feed_forward(l, h);
      if (stride_ > 0 && (last - 1 - l) % stride_ == 0) item.kept[l + 1] = now;
    }
    pass_on(now.x);
    if (model_.has_head()) {
      const at::Tensor hidden = model_.final_hidden(now.x);
      const at::Tensor asked_states = hidden.flatten(0, 1).index_select(0, item.asked.to(hidden.device()));
      if (pass == Pass::teacher)
        item.teacher_hidden = asked_states;
      else
        count_words(item, asked_states, sums);
      if (pass == Pass::text) add_likelihood(item, hidden, sums);
    }
  };
  Pipeline(context_.mesh)
      .stream({0, 1}, state_shape(model_, {item.batch.tokens_BT.size(0), item.batch.tokens_BT.size(1)}), layers);
  if (pass == Pass::teacher) return;
  at::Tensor error = now.error;
  if (model_.shard().sequence_parallel()) model_.shard().all_reduce_sum(error);
  sums[kError] = error.cpu() / static_cast<double>(model_.layer_count());
  if (model_.has_embedding()) sums[kAnswers] = item.batch.answers_BT.sum().item<double>();
}

// Right words of the answers, and how far their logits are from the teacher's. asked_states: the final ones that
// predict the answers.
void HardMixtureJudge::count_words(const Item& item, const at::Tensor& asked_states, at::Tensor& sums) const {
  at::Tensor predicted = at::full({item.batch.tokens_BT.numel()}, -1, at::kLong);
  predicted.index_copy_(0, item.asked, greedy_tokens(asked_states, model_.head(), model_.shard()).cpu());
  sums[kDivergence] =
      kl_divergence(asked_states, model_.head(), item.teacher_hidden, model_.head(), model_.shard()).item<double>();
  RecallCount count;
  for (const RecallCount& depth : recall_of(predicted, item.samples, 1)) count += depth;
  sums[kRight] = static_cast<double>(count.right_words);
  sums[kWords] = static_cast<double>(count.words);
}

// How likely the text around the answers is.
void HardMixtureJudge::add_likelihood(const Item& item, const at::Tensor& hidden, at::Tensor& sums) const {
  const at::Tensor tokens = item.batch.tokens_BT.flatten(), answers = item.batch.answers_BT.flatten();
  const at::Tensor predicting = predicting_places(item.batch);
  const at::Tensor plain = predicting.masked_select(answers.index_select(0, predicting).logical_not());
  const at::Tensor states = hidden.flatten(0, 1).index_select(0, plain.to(hidden.device()));
  sums[kNegativeLog] =
      cross_entropy(states, model_.head(), tokens.index_select(0, plain + 1), model_.shard()).item<double>();
  sums[kPlain] = static_cast<double>(plain.numel());
}

}  // namespace flashmorph
