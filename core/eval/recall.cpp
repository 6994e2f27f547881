#include "core/eval/recall.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/data/sample_stream.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

void count(RecallByDepth& table, const Answer& answer, const std::vector<int32_t>& truth,
           const std::vector<int64_t>& given) {
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

// Reads tokens after those in the caches and says which token comes next.
class Reader {
 public:
  Reader(const MorphableModel& model, const Routes& routes)
      : model_(model), routes_(routes), caches_(static_cast<size_t>(model.layer_count())) {}

  int64_t next_after(const std::vector<int64_t>& tokens) {
    const auto count = static_cast<int64_t>(tokens.size());
    const at::Tensor block = at::tensor(tokens, at::kLong).unsqueeze(0);
    const at::Tensor hidden = model_.forward(block, routes_, model_.positions(position_, count), &caches_);
    position_ += count;
    at::Tensor next = at::zeros({1}, at::kLong);
    if (model_.has_head()) next.copy_(greedy_tokens(hidden.select(1, count - 1), model_.head(), model_.shard()));
    model_.pipeline_peers().share_last(next);
    return next.item<int64_t>();
  }

 private:
  const MorphableModel& model_;
  const Routes& routes_;
  std::vector<LayerCache> caches_;
  int64_t position_ = 0;
};

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
      count(table, answer, sample.tokens, {first, first + answer.count});
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
  const c10::NoGradGuard no_gradient;
  RecallByDepth table(static_cast<size_t>(depths));
  for (const Sample& sample : samples) {
    Reader reader(model, routes);
    int64_t read = 0;
    std::vector<int64_t> unread;  // the last token of the model's answer, then the next question
    for (const Answer& answer : sample.answers) {
      unread.insert(unread.end(), sample.tokens.begin() + read, sample.tokens.begin() + answer.first);
      const int64_t newline = sample.tokens[answer.first + answer.count - 1];
      std::vector<int64_t> given = {reader.next_after(unread)};
      while (given.back() != newline && static_cast<int64_t>(given.size()) < answer.count)
        given.push_back(reader.next_after({given.back()}));
      unread = {given.back()};
      if (model.has_head()) count(table, answer, sample.tokens, given);
      read = answer.first + answer.count;
    }
  }
  return table;
}

}  // namespace flashmorph
