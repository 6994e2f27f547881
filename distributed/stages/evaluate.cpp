#include "distributed/stages/evaluate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/base/random.h"
#include "core/eval/perplexity.h"
#include "core/eval/recall.h"

namespace flashmorph {
namespace {

constexpr uint64_t kEvaluate = 0x65766131;  // keeps these samples apart from every training stage's

// Every data-rank-th of the first `count` samples of this length.
std::vector<Sample> samples_of_this_rank(int64_t length, int64_t count, const StageContext& context) {
  const EvaluateSection& section = context.config.stages.evaluate;
  std::vector<Sample> samples;
  for (int64_t i = context.mesh.data_rank(); i < count; i += context.mesh.shape().data) {
    KeyedRandom random{static_cast<uint64_t>(context.config.run.seed), kEvaluate, static_cast<uint64_t>(length),
                       static_cast<uint64_t>(i)};
    samples.push_back(context.passkeys.make(context.corpus.held_out().drawn(random), length, section.passkeys,
                                            section.words, random));
  }
  return samples;
}

// Adds up over the data ranks; on a pipeline the last rank has counted, the others have zeros.
void sum_over_samples(at::Tensor& counts, Mesh& mesh) {
  mesh.data().all_reduce(counts, Reduction::sum);
  mesh.pipeline().all_reduce(counts, Reduction::sum);
}

RecallByDepth over_all_ranks(const RecallByDepth& mine, Mesh& mesh) {
  at::Tensor counts = at::zeros({static_cast<int64_t>(mine.size()), 4}, at::kLong);
  auto cell = counts.accessor<int64_t, 2>();
  for (size_t b = 0; b < mine.size(); ++b) {
    cell[b][0] = mine[b].words;
    cell[b][1] = mine[b].right_words;
    cell[b][2] = mine[b].answers;
    cell[b][3] = mine[b].whole_answers;
  }
  sum_over_samples(counts, mesh);
  RecallByDepth all;
  for (size_t b = 0; b < mine.size(); ++b) all.push_back({cell[b][0], cell[b][1], cell[b][2], cell[b][3]});
  return all;
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

// Measures this rank's items, `few` at a time; in between, all ranks ask whether to stop. No rank has more than `most`.
using Measure = std::function<void(int64_t first, int64_t last)>;
void in_parts(int64_t mine, int64_t most, int64_t few, const Measure& measure, int64_t step, StageContext& context) {
  for (int64_t first = 0; first < most; first += few) {
    stop_if_asked(context, "evaluate", step);
    if (first < mine) measure(first, std::min(mine, first + few));
  }
}

// Of the first `count` samples of this length, over all ranks; `recall_of` measures a few.
template <class RecallOf>
RecallByDepth recall_at(int64_t length, int64_t count, int64_t few, int64_t step, StageContext& context,
                        const RecallOf& recall_of) {
  const std::vector<Sample> samples = samples_of_this_rank(length, count, context);
  const int64_t ranks = context.mesh.shape().data;
  RecallByDepth mine(static_cast<size_t>(context.config.stages.evaluate.depths));
  const auto measure = [&](int64_t first, int64_t last) {
    const RecallByDepth part = recall_of(std::vector<Sample>(samples.begin() + first, samples.begin() + last));
    for (size_t b = 0; b < mine.size(); ++b) mine[b] += part[b];
  };
  in_parts(static_cast<int64_t>(samples.size()), (count + ranks - 1) / ranks, few, measure, step, context);
  return over_all_ranks(mine, context.mesh);
}

double perplexity(const MorphableModel& model, const Routes& routes, int64_t step, StageContext& context) {
  const EvaluateSection& section = context.config.stages.evaluate;
  const int64_t length = section.perplexity_length;
  const std::vector<TokenView> text = context.corpus.held_out().windows(
      static_cast<size_t>(length), static_cast<size_t>(section.perplexity_tokens / length));
  const auto windows = static_cast<int64_t>(text.size());
  const int64_t ranks = context.mesh.shape().data, rank = context.mesh.data_rank();
  const int64_t begin = windows * rank / ranks, end = windows * (rank + 1) / ranks;
  LikelihoodSum mine;
  const auto measure = [&](int64_t first, int64_t last) {
    for (int64_t window = begin + first; window < begin + last; ++window) {
      const LikelihoodSum part = text_likelihood(model, routes, text[static_cast<size_t>(window)], length, 0, 1);
      mine.negative_log += part.negative_log;
      mine.tokens += part.tokens;
    }
  };
  in_parts(end - begin, (windows + ranks - 1) / ranks, kSamplesAtATime, measure, step, context);
  at::Tensor sums = at::zeros({2}, at::kDouble);
  sums[0] = mine.negative_log;
  sums[1] = static_cast<double>(mine.tokens);
  sum_over_samples(sums, context.mesh);
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
  context.observer.started({.stage = "evaluate",
                            .what = after.empty() ? name : name + " after " + after,
                            .steps = static_cast<int64_t>(section.lengths.size()),
                            .tokens = 0});
  proto::Measurement result;
  result.set_name(name);
  result.set_after(after);
  result.set_kv_bytes_per_token(kv_bytes_per_token(model, routes));
  int64_t step = 0;
  for (const int64_t length : section.lengths) {
    const RecallByDepth forced =
        recall_at(length, section.samples, kSamplesAtATime, step, context,
                  [&](const auto& samples) { return teacher_forced_recall(model, routes, samples, section.depths); });
    const RecallByDepth greedy = recall_at(length, section.greedy_samples, 1, step, context, [&](const auto& samples) {
      return greedy_recall(model, routes, samples, section.depths);
    });
    proto::RecallAtLength& recall = *result.add_recall();
    recall.set_length(length);
    fill(*recall.mutable_teacher_forced(), total(forced));
    fill(*recall.mutable_greedy(), total(greedy));
    for (const RecallCount& count : forced) fill(*recall.add_teacher_forced_by_depth(), count);
    context.observer.recalled({.step = ++step, .length = length, .recall = total(forced).word_recall()});
  }
  result.set_perplexity(perplexity(model, routes, step, context));
  return result;
}

}  // namespace flashmorph
