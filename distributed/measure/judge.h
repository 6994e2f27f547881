#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "core/select/selector.h"
#include "distributed/measure/measures.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The samples that judge: of the held-out text, none that a stage trains on or measures, the same for every set, of
// the lengths, passkeys and words that stages.evaluate asks for. A set is judged by what the run will report of it:
// with many or long passkeys other layers matter than with few.
Sample judge_sample(int64_t index, const StageContext& context);

// The length of the samples in a judge's forward: those of one forward are alike.
int64_t judged_length(int64_t forward, const EvaluateSection& section);

// How many layers two hard mixtures have alike before the first in which they differ.
int64_t layers_alike(const Routes& a, const Routes& b);

// Of the states behind a model's layers, so many bytes each, a judge keeps those behind every how-many-th layer,
// counted from the last one back, for `most` bytes; 0: behind none.
int64_t layers_between_kept(int64_t layers, int64_t bytes, int64_t most);

// Judges hard mixtures: full attention in some layers, the aligned linear branches in all others. Forward only.
// A judgement depends on the set alone; the number of data ranks changes no bit of it. Layers in front of the first one
// in which a set differs from the set judged before are not run again: sets that differ late come cheap.
class HardMixtureJudge {
 public:
  static constexpr int64_t kMostKept = int64_t{2} << 30;           // bytes
  static int64_t most_kept_by_each(const SelectSection& section);  // of the judges that a run has: of two half each

  // Takes the teacher over the samples, the first so many. Model and context outlive this. `most_kept`: bytes of a
  // rank's memory for the states between layers of the set judged last, which are kept behind as many layers, evenly
  // and behind the last of them, as that is enough for. Collective.
  HardMixtureJudge(const MorphableModel& model, StageContext& context, int64_t samples, int64_t most_kept = kMostKept);

  // full_layers: ascending. The judgement, with the text's perplexity or without, and what it cost over all ranks
  // (operations: those that were done), the same on every rank. Collective.
  proto::JudgedSet judge(const std::vector<int64_t>& full_layers, bool with_text = false);

 private:
  enum class Pass { teacher, answers, text };  // a hybrid's answers alone, or all of its text
  struct Kept {
    at::Tensor x;      // in front of a layer
    at::Tensor error;  // of this rank's layers before it
  };
  struct Item {  // samples of one length, in one forward
    std::vector<Sample> samples;
    Batch batch;
    Positions positions;
    at::Tensor asked;                 // the places of the flat tokens whose next one is an answer's, on the host
    at::Tensor answers;               // those of this rank's own, where the model is
    std::vector<at::Tensor> teacher;  // H at the answers, by own layer
    at::Tensor teacher_hidden;        // its final states there, where the head is
    std::map<int64_t, Kept> kept;     // by the layer that they are in front of, of the set judged last
  };

  Item item_of(int64_t index) const;
  int64_t bytes_behind_a_layer() const;
  void judge_items(const Routes& routes, Pass pass, at::Tensor& rows);
  void through_layers(Item& item, const Routes& routes, int64_t from, Pass pass, at::Tensor& sums) const;
  Kept resumed(Item& item, at::Tensor x, int64_t& from) const;
  void count_words(const Item& item, const at::Tensor& asked_states, at::Tensor& sums) const;
  void add_likelihood(const Item& item, const at::Tensor& hidden, at::Tensor& sums) const;

  const MorphableModel& model_;
  StageContext& context_;
  int64_t samples_;
  int64_t count_;  // items over all data ranks
  OwnItems own_;
  std::vector<Item> mine_;
  int64_t stride_;  // layers from one kept state to the next; 0: there is no memory for any
  Routes last_;     // judged last
};

}  // namespace flashmorph
