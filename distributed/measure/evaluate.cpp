#include "distributed/measure/evaluate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/random.h"
#include "core/eval/perplexity.h"
#include "core/eval/recall.h"
#include "distributed/measure/measures.h"

namespace flashmorph {
namespace {

constexpr uint64_t kEvaluate = 0x65766131;  // keeps these samples apart from every training stage's

std::vector<Sample> samples_of(int64_t length, int64_t first, int64_t last, const StageContext& context) {
  const EvaluateSection& section = context.config.stages.evaluate;
  std::vector<Sample> samples;
  for (int64_t i = first; i < last; ++i) {
    KeyedRandom random{static_cast<uint64_t>(context.config.run.seed), kEvaluate, static_cast<uint64_t>(length),
                       static_cast<uint64_t>(i)};
    samples.push_back(context.passkeys.make(context.corpus.held_out().drawn(random), length, section.passkeys,
                                            section.words, random));
  }
  return samples;
}

void fill(proto::RecallCounts& message, const RecallCount& count) {
  message.set_words(count.words);
  message.set_right_words(count.right_words);
  message.set_answers(count.answers);
  message.set_whole_answers(count.whole_answers);
}

RecallCount total(const RecallByDepth& by_depth) {
  RecallCount sum;
  for (const RecallCount& count : by_depth) sum += count;
  return sum;
}

// Between two parts of a measurement all ranks ask whether to stop.
BeforePart stop_before(int64_t step, StageContext& context) {
  return [step, &context](int64_t) {
    context.stop.throw_if_agreed(context.mesh.world(), fmt::format("in evaluate before step {}", step + 1));
  };
}

// Of the first `count` samples of this length, over all ranks; `recall_of` measures a few.
template <class RecallOf>
RecallByDepth recall_at(int64_t length, int64_t count, int64_t step, StageContext& context, const RecallOf& recall_of) {
  RecallByDepth counts(static_cast<size_t>(context.config.stages.evaluate.depths));
  const auto measure = [&](int64_t first, int64_t last) {
    const RecallByDepth part = recall_of(samples_of(length, first, last, context));
    for (size_t b = 0; b < counts.size(); ++b) counts[b] += part[b];
  };
  in_parts(count, kSamplesAtATime, context.mesh, measure, stop_before(step, context));
  constexpr size_t kNumbers = sizeof(RecallCount) / sizeof(int64_t);  // it is nothing else
  at::Tensor numbers = at::from_blob(counts.data(), {static_cast<int64_t>(kNumbers * counts.size())}, at::kLong);
  sum_over_items(numbers, context.mesh);
  return counts;
}

double perplexity(const MorphableModel& model, const Routes& routes, int64_t step, StageContext& context) {
  const EvaluateSection& section = context.config.stages.evaluate;
  const int64_t length = section.perplexity_length;
  const std::vector<TokenView> text = context.corpus.held_out().windows(
      static_cast<size_t>(length), static_cast<size_t>(section.perplexity_tokens / length));
  const auto windows = static_cast<int64_t>(text.size());
  LikelihoodSum mine;
  const auto measure = [&](int64_t first, int64_t last) {
    for (int64_t window = first; window < last; ++window)
      mine += text_likelihood(model, routes, text[static_cast<size_t>(window)], length, 0, 1);
  };
  in_parts(windows, kSamplesAtATime, context.mesh, measure, stop_before(step, context));
  at::Tensor sums = at::zeros({2}, at::kDouble);
  sums[0] = mine.negative_log;
  sums[1] = static_cast<double>(mine.tokens);
  sum_over_items(sums, context.mesh);
  return std::exp(sums[0].item<double>() / sums[1].item<double>());
}

int64_t kv_bytes_per_token(const MorphableModel& model, const Routes& routes) {
  const auto element = static_cast<int64_t>(c10::elementSize(model.placement().dtype));
  int64_t bytes = 0;
  for (const Route& route : routes)
    if (route.kind != Route::Kind::linear) bytes += model.spec().kv_bytes(element);
  return bytes;
}

}  // namespace

proto::Measurement evaluate(const MorphableModel& model, const Routes& routes, const std::string& name,
                            const std::string& after, StageContext& context) {
  const EvaluateSection& section = context.config.stages.evaluate;
  const Phase measuring(context.watchdog, Work::evaluate, "evaluate " + name);
  const c10::NoGradGuard no_gradient;
  context.observer.started(
      {.stage = "evaluate",
       .what = after.empty() ? name : name + " after " + after,
       .steps = static_cast<int64_t>(section.lengths.size() + section.tasks.size() * section.task_lengths.size()),
       .tokens = 0});
  proto::Measurement result;
  result.set_name(name);
  result.set_after(after);
  result.set_kv_bytes_per_token(kv_bytes_per_token(model, routes));
  int64_t step = 0;
  for (const int64_t length : section.lengths) {
    const RecallByDepth forced = recall_at(length, section.samples, step, context, [&](const auto& samples) {
      return teacher_forced_recall(model, routes, samples, section.depths);
    });
    const RecallByDepth greedy = recall_at(length, section.greedy_samples, step, context, [&](const auto& samples) {
      return greedy_recall(model, routes, samples, section.depths);
    });
    proto::RecallAtLength& recall = *result.add_recall();
    recall.set_length(length);
    fill(*recall.mutable_teacher_forced(), total(forced));
    fill(*recall.mutable_greedy(), total(greedy));
    for (const RecallCount& count : forced) fill(*recall.add_teacher_forced_by_depth(), count);
    context.observer.recalled({.step = ++step, .length = length, .recall = total(forced).word_recall()});
  }
  for (const std::string& name : section.tasks)
    for (const int64_t length : section.task_lengths) {
      const TaskPlan plan{*context.tasks, static_cast<uint64_t>(context.config.run.seed), section.task_samples,
                          section.depths, usual_batch_tokens(model.placement().device)};
      const proto::TaskScore score =
          measure_task(model, routes, task_named(name), length, plan, context.mesh, stop_before(step, context));
      *result.add_tasks() = score;
      context.observer.scored({.step = ++step, .task = name, .length = length, .score = score.score()});
    }
  result.set_perplexity(perplexity(model, routes, step, context));
  return result;
}

}  // namespace flashmorph
