#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "core/select/selector.h"
#include "distributed/measure/measures.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The samples that judge: of the held-out text, none that a stage trains on or measures, the same for every set;
// stages.select.judge_samples of the lengths, passkeys and words that stages.evaluate asks for. A set is judged by what
// the run will report of it: with many or long passkeys other layers matter than with few.
Sample judge_sample(int64_t index, const StageContext& context);

// Judges hard mixtures: full attention in some layers, the aligned linear branches in all others. Forward only.
// A judgement depends on the set alone; the number of data ranks changes no bit of it.
class HardMixtureJudge {
 public:
  // Takes the teacher over the samples. Model and context outlive this. Collective.
  HardMixtureJudge(const MorphableModel& model, StageContext& context);

  // full_layers: ascending. The judgement, and what it cost over all ranks, the same on every rank. Stopped when
  // somebody asked for that. Collective.
  proto::JudgedSet judge(const std::vector<int64_t>& full_layers);

 private:
  struct Item {  // samples of one length, in one forward
    std::vector<Sample> samples;
    Batch batch;
    at::Tensor answers;               // the places of this rank's flat tokens whose next one is an answer's
    std::vector<at::Tensor> teacher;  // H at the answers, by own layer
    at::Tensor teacher_hidden;        // its final states there, where the head is
  };

  Item item_of(int64_t index) const;
  void through_layers(Item& item, const Routes& routes, bool is_teacher, at::Tensor& sums);
  static at::Tensor at_asked(const Item& item, const at::Tensor& hidden);
  void count_words(const Item& item, const at::Tensor& hidden, at::Tensor& sums) const;

  const MorphableModel& model_;
  StageContext& context_;
  int64_t count_;  // items over all data ranks
  OwnItems own_;
  std::vector<Item> mine_;
  int64_t judged_ = 0;
};

}  // namespace flashmorph
