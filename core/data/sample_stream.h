#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "core/config/run_config.h"
#include "core/data/corpus.h"
#include "core/data/passkeys.h"

namespace flashmorph {

// One forward's sequences. Letters: B sequences, T tokens.
struct Batch {
  at::Tensor tokens_BT;   // int64
  at::Tensor answers_BT;  // bool: the NEXT token is an answer's, so the state here must know it
  // Several documents packed in one row (B = 1): int64 [documents + 1] offsets from 0 to T. No attention looks across.
  std::optional<at::Tensor> documents;
};

// One row a sample; or, to be `packed` or when any holds several documents, all of them behind each other in one row.
Batch batch_of(const std::vector<Sample>& samples, bool packed = false);

// The places of tokens_BT.flatten() whose next token belongs to the same sequence and document: those a next-token loss
// is over.
at::Tensor predicting_places(const Batch& batch);

// The sequences of a training stage, step by step, each step cut into micro-batches of equal size. Everything is a pure
// function of (seed, stage, step, index), so that any rank can make its part and the number of ranks changes nothing.
class SampleStream {
 public:
  SampleStream(const Corpus& corpus, const PasskeyTask& task, const TrainingSection& config, int64_t seed,
               const std::string& stage);

  int64_t steps() const;                      // tokens / batch_tokens, rounded up
  int64_t length(int64_t step) const;         // tokens of each sequence of this step
  int64_t micro_batches(int64_t step) const;  // of the whole step, over all ranks
  int64_t micro_batch_sequences(int64_t step) const;
  // The rows and columns of a micro-batch's tensors: one row for all when the text's documents are to be kept apart.
  std::pair<int64_t, int64_t> micro_batch_shape(int64_t step) const;
  Batch micro_batch(int64_t step, int64_t index) const;

 private:
  TextMixture training_;
  const PasskeyTask* task_;
  TrainingSection config_;
  uint64_t seed_;
  uint64_t stage_;
  bool packed_;
};

}  // namespace flashmorph
