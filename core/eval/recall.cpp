#include "core/eval/recall.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/data/sample_stream.h"
#include "core/eval/decoder.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

void count(RecallByDepth& table, const Answer& answer, const std::vector<int32_t>& truth,
           const std::vector<int32_t>& given) {
  const auto buckets = static_cast<int64_t>(table.size());
  const int64_t bucket = std::min(buckets - 1, static_cast<int64_t>(answer.depth * static_cast<double>(buckets)));
  RecallCount counted{.words = answer.count - 1, .right_words = 0, .answers = 1, .whole_answers = 0};
  bool whole = true;
  for (int64_t i = 0; i < answer.count; ++i) {
    const bool right = i < static_cast<int64_t>(given.size()) && given[i] == truth[answer.first + i];
    whole = whole && right;
    if (i + 1 < answer.count) counted.right_words += right;
  }
  counted.whole_answers = whole;
  table[bucket] += counted;
}

}  // namespace

RecallCount& RecallCount::operator+=(const RecallCount& other) {
  words += other.words;
  right_words += other.right_words;
  answers += other.answers;
  whole_answers += other.whole_answers;
  return *this;
}

RecallByDepth recall_of(const at::Tensor& predicted, const std::vector<Sample>& samples, int64_t depths) {
  RecallByDepth table(static_cast<size_t>(depths));
  const auto* next = predicted.const_data_ptr<int64_t>();
  for (const Sample& sample : samples) {
    for (const Answer& answer : sample.answers) {
      const int64_t* first = next + answer.first - 1;
      count(table, answer, sample.tokens, std::vector<int32_t>(first, first + answer.count));
    }
    next += sample.tokens.size();
  }
  return table;
}

RecallByDepth teacher_forced_recall(const MorphableModel& model, const Routes& routes,
                                    const std::vector<Sample>& samples, int64_t depths, int64_t batch) {
  const c10::NoGradGuard no_gradient;
  RecallByDepth table(static_cast<size_t>(depths));
  for (size_t start = 0; start < samples.size(); start += static_cast<size_t>(batch)) {
    const std::vector<Sample> part(
        samples.begin() + static_cast<std::ptrdiff_t>(start),
        samples.begin() + static_cast<std::ptrdiff_t>(std::min(samples.size(), start + static_cast<size_t>(batch))));
    const Batch tokens = batch_of(part);
    const int64_t length = tokens.tokens_BT.size(1);
    const at::Tensor hidden = model.forward(tokens.tokens_BT, routes, model.positions(0, length));
    if (!model.has_head()) continue;
    const at::Tensor places = tokens.answers_BT.flatten().nonzero().flatten();
    at::Tensor predicted = at::full({static_cast<int64_t>(part.size()) * length}, -1, at::kLong);
    predicted.index_copy_(
        0, places,
        greedy_tokens(hidden.flatten(0, 1).index_select(0, places.to(hidden.device())), model.head(), model.shard())
            .cpu());
    const RecallByDepth counted = recall_of(predicted, part, depths);
    for (size_t b = 0; b < table.size(); ++b) table[b] += counted[b];
  }
  return table;
}

RecallByDepth greedy_recall(const MorphableModel& model, const Routes& routes, const std::vector<Sample>& samples,
                            int64_t depths) {
  RecallByDepth table(static_cast<size_t>(depths));
  if (samples.empty()) return table;
  size_t room = 0, answers = 0;
  for (const Sample& sample : samples) {
    room = std::max(room, sample.tokens.size());
    answers = std::max(answers, sample.answers.size());
  }
  Decoder decoder(model, routes, static_cast<int64_t>(samples.size()), static_cast<int64_t>(room));
  std::vector<int64_t> read(samples.size());
  std::vector<std::vector<int32_t>> unread(
      samples.size());  // the last token of the model's answer, then the next question
  for (size_t asked = 0; asked < answers; ++asked) {
    std::vector<int64_t> most(samples.size());
    for (size_t i = 0; i < samples.size(); ++i) {
      const Sample& sample = samples[i];
      if (asked >= sample.answers.size()) continue;
      const Answer& answer = sample.answers[asked];
      unread[i].insert(unread[i].end(), sample.tokens.begin() + read[i], sample.tokens.begin() + answer.first);
      decoder.read(static_cast<int64_t>(i), unread[i]);
      most[i] = answer.count;
      read[i] = answer.first + answer.count;
    }
    const auto written = decoder.write(most, [&](int64_t i, const std::vector<int32_t>& so_far) {
      return so_far.back() == samples[i].tokens[read[i] - 1];  // the closing newline
    });
    for (size_t i = 0; i < samples.size(); ++i) {
      if (most[i] == 0) continue;
      unread[i] = {written[i].back()};
      if (model.has_head()) count(table, samples[i].answers[asked], samples[i].tokens, written[i]);
    }
  }
  return table;
}

}  // namespace flashmorph
