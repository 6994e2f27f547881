#pragma once

#include <cstdint>
#include <vector>

#include "core/data/passkeys.h"
#include "core/morph/morphable_model.h"

namespace flashmorph {

// Counts that add up over samples and ranks.
struct RecallCount {
  int64_t words = 0;  // answer tokens asked for, the closing newline not counted
  int64_t right_words = 0;
  int64_t answers = 0;
  int64_t whole_answers = 0;  // every word and the closing newline right

  RecallCount& operator+=(const RecallCount&);
  double word_recall() const {
    return words == 0 ? 0.0 : static_cast<double>(right_words) / static_cast<double>(words);
  }
};

using RecallByDepth = std::vector<RecallCount>;  // bucket b holds depths [b, b + 1) / buckets

inline constexpr int64_t kSamplesAtATime = 4;  // in a forward, and in `evaluate` between two chances to stop

// Of what was predicted for each place of the samples' flat tokens, [samples of one length x tokens] int64 on the host,
// that says which token comes next; only places before an answer's tokens are looked at.
RecallByDepth recall_of(const at::Tensor& predicted, const std::vector<Sample>& samples, int64_t depths);

// Both take the whole pipeline group; its last rank counts, the tables of the others stay empty.

// Every answer token predicted with the right answer before it. Samples of one length, `batch` at a time.
RecallByDepth teacher_forced_recall(const MorphableModel& model, const Routes& routes,
                                    const std::vector<Sample>& samples, int64_t depths,
                                    int64_t batch = kSamplesAtATime);

// The model writes its answers, those of all samples together (decoder.h); its own earlier answers stay in the context,
// the questions are read in between.
RecallByDepth greedy_recall(const MorphableModel& model, const Routes& routes, const std::vector<Sample>& samples,
                            int64_t depths);

}  // namespace flashmorph
