#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/config/keys.h"
#include "core/config/kinds.h"

namespace flashmorph {

// The stages' part of a run's YAML (run_config.h).

struct ParallelSection {  // of a run, and of each stage, without what means nothing to it: by default the run's
  int64_t tensor = 1;
  int64_t pipeline = 1;  // data = ranks / (tensor * pipeline)
  std::vector<int64_t> pipeline_cuts;
  std::string recompute = "none";
  bool zero = false;
  bool sequence = false;

  bool operator==(const ParallelSection&) const = default;

  void keys(KeyVisitor& v) {
    v.may_change("tensor", tensor, {"ranks a layer is split over", 1, 65536});
    v.may_change("pipeline", pipeline, {"ranks the layers are dealt out to; the other ranks share the data", 1, 65536});
    v.may_change("pipeline_cuts", pipeline_cuts,
                 {.meaning = "first layers of pipeline ranks 1, 2, ...; empty: balanced by cost",
                  .least = 1,
                  .most = 65536,
                  .may_be_empty = true});
    v.may_change("recompute", recompute,
                 {.meaning = "full: keep a layer's input only and make its activations again in the backward pass",
                  .choices = {"none", "full"}});
    v.may_change("zero", zero, {"ZeRO-1: each data rank keeps its share of AdamW's states"});
    v.may_change("sequence", sequence,
                 {"tensor ranks share the tokens, not only the heads: norms and residuals of a part each"});
  }
};

// What the sequences of a stage are. Sample i of a stage is a pure function of (seed, stage, i).
struct SequenceSection {
  std::vector<int64_t> lengths = {512};
  double passkey_share = 0.5;
  Range passkeys = {4, 4};
  Range words = {8, 8};

  void keys(KeyVisitor& v) {
    v.key("lengths", lengths, {"tokens a sequence; each batch draws one of them", 2, kMany});
    v.key("passkey_share", passkey_share, {"share of sequences with passkeys; the rest is plain text", 0, 1});
    v.key("passkeys", passkeys, {"passkeys a sequence, a number or [min, max]", 1, 10});
    v.key("words", words, {"words a passkey, a number or [min, max]", 1, 64});
  }
};

struct LearningRate {
  double from;
  double to;

  void keys(KeyVisitor& v) {
    v.key("from", from, {"learning rate after the warm-up", 1e-12, 100});
    v.key("to", to, {"learning rate at the last step (cosine)", 0, 100});
  }
};

struct TrainingSection {
  int64_t tokens = 0;
  int64_t batch_tokens = 8192;
  int64_t micro_batch_tokens = 0;
  LearningRate lr = {1e-3, 1e-5};
  int64_t warmup_steps = 0;
  double clip = 1.0;
  double weight_decay = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  SequenceSection data;
  ParallelSection parallel;

  int64_t steps() const { return (tokens + batch_tokens - 1) / batch_tokens; }  // to come to all tokens
  int64_t longest() const;                                                      // tokens of the longest sequence
  int64_t micro_batch() const { return micro_batch_tokens == 0 ? longest() : micro_batch_tokens; }  // tokens a forward
  void rules(KeyVisitor& v) const;

 protected:
  // All but where the work is done.
  void training_keys(KeyVisitor& v, const Rule& of_tokens, const std::set<std::string>& without_of_data = {}) {
    v.key("tokens", tokens, of_tokens);
    v.key("batch_tokens", batch_tokens, {"tokens a step, over all ranks", 2, kMany});
    v.key("micro_batch_tokens", micro_batch_tokens, {"tokens a forward; 0: the longest sequence", 0, kMany});
    v.section("lr", lr);
    v.key("warmup_steps", warmup_steps, {"steps of linear warm-up", 0, kMany});
    v.key("beta1", beta1, {"AdamW's first moment", 0, 0.999999});
    v.key("beta2", beta2, {"AdamW's second moment", 0, 0.999999});
    v.key("clip", clip, {"gradient norm at most; 0: off", 0, kMany});
    v.key("weight_decay", weight_decay, {"AdamW's decoupled decay", 0, 1});
    v.section("data", data, without_of_data);
  }
};

struct AlignSection : TrainingSection {
  std::string branches;

  void keys(KeyVisitor& v) {
    v.key("branches", branches,
          {.meaning = "branches.safetensors of another run, with the same teacher and mixer, from which these start; "
                      "with tokens: 0 they are taken as they are",
           .is_path = true});
    training_keys(v, {"tokens in all; 0 with branches alone: they are taken as they are", 0, kMany});
    v.require(tokens > 0 || !branches.empty(), {"tokens"},
              "is missing or 0: the branches need tokens to train, or stages.align.branches to be taken from");
    v.section("parallel", parallel, {"recompute"});  // no backward crosses a layer
  }
};

struct SelectSection : TrainingSection {
  SelectSection() {
    lr = {5e-2, 5e-2};
    clip = 0.0;
    data = {.lengths = {1024}, .passkey_share = 1.0, .passkeys = {10, 10}, .words = {32, 32}};  // only answers count
  }
  std::string method = "flashmorph";
  int64_t judge_samples = 32;
  KindSettings own{"selector"};  // of each method alone

  void keys(KeyVisitor& v) {
    v.key("method", method, {.meaning = "who picks the layers", .choices = kinds_of("selector")});
    v.key("judge_samples", judge_samples,
          {"held-out samples on which methods that compare sets of layers judge them", 1, kMany});
    own.keys(v);
    training_keys(
        v, {.meaning = "tokens in all, rounded up to whole batches", .least = 1, .most = kMany, .required = true},
        {"passkey_share"});
    v.section("parallel", parallel, {"zero"});
  }
};

struct HybridSection : TrainingSection {
  void keys(KeyVisitor& v) {
    training_keys(v, {"tokens in all; 0 leaves the stage out", 0, kMany});
    v.section("parallel", parallel);
  }
};

struct DistillSection : HybridSection {
  DistillSection() { lr = {1e-4, 1e-5}; }
};

struct FinetuneSection : HybridSection {
  FinetuneSection() {
    lr = {1e-5, 1e-5};
    data.lengths = {1024};
  }
};

struct EvaluateSection {
  std::vector<std::string> compare = {"uniform", "all_linear"};
  std::vector<int64_t> lengths = {512, 1024};
  int64_t passkeys = 4;
  int64_t words = 8;
  int64_t samples = 32;
  int64_t greedy_samples = 4;
  int64_t depths = 4;
  int64_t perplexity_tokens = 16384;
  int64_t perplexity_length = 512;
  std::vector<std::string> tasks = {};
  std::vector<int64_t> task_lengths = {1024};
  int64_t task_samples = 16;
  ParallelSection parallel;

  void keys(KeyVisitor& v) {
    v.key(
        "compare", compare,
        {.meaning = "methods whose picks get the same training and are measured too", .choices = kinds_of("selector")});
    v.key("lengths", lengths, {"tokens of the recall samples", 2, kMany});
    v.key("passkeys", passkeys, {"passkeys a sample", 1, 10});
    v.key("words", words, {"words a passkey", 1, 64});
    v.key("samples", samples, {"samples a length, teacher-forced", 1, kMany});
    v.key("greedy_samples", greedy_samples, {"of them, also answered by greedy decoding", 0, kMany});
    v.key("depths", depths, {"buckets of depth in evaluation.json", 1, 100});
    v.key("perplexity_tokens", perplexity_tokens, {"held-out tokens for perplexity", 2, kMany});
    v.key("perplexity_length", perplexity_length, {"tokens a window", 2, kMany});
    v.key(
        "tasks", tasks,
        {.meaning = "long-context tasks that every model is asked too, as `flashmorph-dist evaluate --help` lists them",
         .may_be_empty = true});
    v.key("task_lengths", task_lengths, {"tokens of their samples, answer included", 2, kMany});
    v.key("task_samples", task_samples, {"samples a task and length", 1, kMany});
    v.section("parallel", parallel, {"recompute", "zero", "sequence"});
  }
  void rules(KeyVisitor& v) const;
};

struct ExportSection {
  bool enabled = true;
  std::string format = "auto";

  void keys(KeyVisitor& v) {
    v.key("enabled", enabled, {"write a Hugging Face folder at the end"});
    v.key(
        "format", format,
        {"of the folder, by the name in exports.md: flashmorph holds all hybrids and brings its code, the others load "
         "without; auto takes the first that can hold this one"});
  }
};

struct StagesSection {
  AlignSection align;
  SelectSection select;
  DistillSection distill;
  FinetuneSection finetune;
  EvaluateSection evaluate;
  ExportSection export_;  // YAML key: export

  // The training stages by name, in order.
  std::array<std::pair<const char*, const TrainingSection*>, 4> training() const;
  const TrainingSection* training(const std::string& stage) const;  // nullptr: no training stage
  std::array<ParallelSection*, 5> parallels();                      // of each stage that has a mesh

  void keys(KeyVisitor& v) {
    v.section("align", align);
    v.section("select", select, {"clip", "weight_decay"});  // it trains a number a layer
    v.section("distill", distill);
    v.section("finetune", finetune);
    v.section("evaluate", evaluate);
    v.section("export", export_);
  }
};

}  // namespace flashmorph
