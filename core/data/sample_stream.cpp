#include "core/data/sample_stream.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr uint64_t kLengthOfStep = 1, kSample = 2;  // keep the two uses of randomness apart

uint64_t name_hash(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

int64_t drawn(const Range& range, KeyedRandom& random) {
  return range.min + static_cast<int64_t>(random.below(static_cast<uint64_t>(range.max - range.min + 1)));
}

// Where the documents start when the samples of one length stand behind each other, and where the last one ends.
at::Tensor packed_documents(const std::vector<Sample>& samples, int64_t length) {
  std::vector<int64_t> offsets;
  for (int64_t b = 0; b < static_cast<int64_t>(samples.size()); ++b) {
    offsets.push_back(b * length);
    for (const int64_t start : samples[b].document_starts) offsets.push_back(b * length + start);
  }
  offsets.push_back(static_cast<int64_t>(samples.size()) * length);
  return at::tensor(offsets, at::kLong);
}

}  // namespace

Batch batch_of(const std::vector<Sample>& samples, bool packed) {
  const auto sequences = static_cast<int64_t>(samples.size()),
             length = static_cast<int64_t>(samples.at(0).tokens.size());
  Batch batch{at::empty({sequences, length}, at::kLong), at::zeros({sequences, length}, at::kBool), std::nullopt};
  auto tokens = batch.tokens_BT.accessor<int64_t, 2>();
  auto answers = batch.answers_BT.accessor<bool, 2>();
  for (int64_t b = 0; b < sequences; ++b) {
    TORCH_CHECK(static_cast<int64_t>(samples[b].tokens.size()) == length, "samples of one length");
    for (int64_t t = 0; t < length; ++t) tokens[b][t] = samples[b].tokens[t];
    for (const Answer& answer : samples[b].answers)
      for (int64_t t = answer.first; t < answer.first + answer.count; ++t) answers[b][t - 1] = true;
  }
  if (packed || std::ranges::any_of(samples, [](const Sample& sample) { return !sample.document_starts.empty(); })) {
    batch.tokens_BT = batch.tokens_BT.view({1, -1});
    batch.answers_BT = batch.answers_BT.view({1, -1});
    batch.documents = packed_documents(samples, length);
  }
  return batch;
}

at::Tensor predicting_places(const Batch& batch) {
  at::Tensor predicts_BT = at::ones_like(batch.tokens_BT, at::kBool);
  predicts_BT.select(1, -1).fill_(false);
  if (batch.documents) predicts_BT.index_fill_(1, batch.documents->slice(0, 1) - 1, false);
  return predicts_BT.flatten().nonzero().flatten();
}

SampleStream::SampleStream(const Corpus& corpus, const PasskeyTask& task, const TrainingSection& config, int64_t seed,
                           const std::string& stage)
    : training_(corpus.training()),
      task_(&task),
      config_(config),
      seed_(static_cast<uint64_t>(seed)),
      stage_(name_hash(stage)),
      packed_(config.data.passkey_share < 1.0 && training_.of_several_documents()) {
  const SequenceSection& data = config.data;
  const int64_t shortest = std::ranges::min(data.lengths),
                needed = task.least_length(data.passkeys.max, data.words.max);
  if (data.passkey_share > 0.0 && needed > shortest)
    throw BadInput("stages." + stage + ".data.lengths",
                   std::to_string(data.passkeys.max) + " passkeys of " + std::to_string(data.words.max) +
                       " words need " + std::to_string(needed) + " tokens, the shortest length is " +
                       std::to_string(shortest));
}

int64_t SampleStream::steps() const { return config_.steps(); }

int64_t SampleStream::length(int64_t step) const {
  KeyedRandom random{seed_, stage_, kLengthOfStep, static_cast<uint64_t>(step)};
  return config_.data.lengths[random.below(config_.data.lengths.size())];
}

int64_t SampleStream::micro_batches(int64_t step) const {
  return config_.batch_tokens / (length(step) * micro_batch_sequences(step));
}

int64_t SampleStream::micro_batch_sequences(int64_t step) const { return config_.micro_batch() / length(step); }

std::pair<int64_t, int64_t> SampleStream::micro_batch_shape(int64_t step) const {
  const int64_t sequences = micro_batch_sequences(step);
  return packed_ ? std::pair(int64_t{1}, sequences * length(step)) : std::pair(sequences, length(step));
}

Batch SampleStream::micro_batch(int64_t step, int64_t index) const {
  const SequenceSection& data = config_.data;
  const int64_t sequences = micro_batch_sequences(step), most = config_.batch_tokens / std::ranges::min(data.lengths);
  std::vector<Sample> samples;
  for (int64_t i = 0; i < sequences; ++i) {
    const auto sample = static_cast<uint64_t>(step * most + index * sequences + i);
    KeyedRandom random{seed_, stage_, kSample, sample};
    if (random.unit() >= data.passkey_share) {
      samples.push_back(plain_text(training_.drawn(random), length(step), random));
      continue;
    }
    const int64_t words = drawn(data.words, random), passkeys = drawn(data.passkeys, random);
    samples.push_back(task_->make(training_.drawn(random), length(step), passkeys, words, random));
  }
  return batch_of(samples, packed_);
}

}  // namespace flashmorph
