#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/config/keys.h"
#include "core/config/kinds.h"

namespace flashmorph {

// What one run does, from a YAML file: plain values with their defaults, and below them, in keys(), what each is. A
// field name is its YAML key.

struct RunSection {
  std::string name = "run";
  std::string dir = "runs";
  int64_t seed = 1;
  double time_limit = 0.0;

  void keys(KeyVisitor& v) {
    v.key("name", name, without_effect({"name of the run; its folder is dir/name"}));
    v.key("dir", dir, without_effect({.meaning = "folder of all runs", .is_path = true}));
    v.key("seed", seed, {"all randomness follows from it", 0, kMany});
    v.key("time_limit", time_limit,
          without_effect({"seconds until this start writes a checkpoint and exits with 75; 0: no limit but that of its "
                          "Slurm job",
                          0, kMany}));
  }
};

struct ModelSection {
  std::string path;

  void keys(KeyVisitor& v) {
    v.key("path", path,
          {.meaning = "Hugging Face folder of the teacher: config.json, *.safetensors, tokenizer.json",
           .required = true,
           .is_path = true});
  }
};

struct MixerSection {
  std::string kind = "lightning";
  KindSettings own{"mixer"};  // of each kind alone
  bool rope = true;
  std::string init = "default";
  int64_t chunk = 64;

  void keys(KeyVisitor& v) {
    v.key("kind", kind, {.meaning = "linear attention of the branches", .choices = kinds_of("mixer")});
    own.keys(v);
    v.key("rope", rope, {"rotate queries and keys, in the mixers that do so"});
    v.key("init", init,
          {.meaning =
               "learned decays at the start: the usual ones, or half-lives from the mean distance of the teacher's "
               "attention",
           .choices = {"default", "data"}});
    v.key("chunk", chunk, without_effect({"tokens a chunk of linear attention; changes speed, not results", 1, 4096}));
  }
};

struct BudgetSection {  // exactly one of the first four; 0 and "": not given
  int64_t full_layers = 0;
  std::string ratio;
  int64_t kv_bytes_per_token = 0;
  double milliseconds = 0.0;
  int64_t length = 4096;

  bool counts_layers() const { return full_layers > 0 || !ratio.empty(); }
  // K for a model of so many layers, when the budget counts layers; BadInput when it is not in [1, layers - 1].
  int64_t full_layers_of(int64_t model_layers) const;

  void keys(KeyVisitor& v) {
    v.key("full_layers", full_layers, {"K, the layers that keep full attention; 0: another budget", 0, 10000});
    v.key("ratio", ratio, {"linear to full layers, e.g. 3:1, instead of full_layers"});
    v.key("kv_bytes_per_token", kv_bytes_per_token,
          {"bytes of the hybrid's KV cache a token, at device.dtype, instead of full_layers", 0, kMany});
    v.key("milliseconds", milliseconds,
          {"time of the hybrid's attention layers, a forward over one sequence on these ranks, measured at the start; "
           "instead of full_layers",
           0, kMany});
    v.key("length", length, {"tokens of that sequence", 1, kMany});
  }
};

struct DeviceSection {
  std::string kind = "cpu";
  std::string dtype = "float32";  // with bfloat16 losses, gates and states stay wider
  int64_t threads = 1;

  void keys(KeyVisitor& v) {
    v.key("kind", kind,
          {.meaning = "where tensors live; cuda: each rank of a host takes a card", .choices = {"cpu", "cuda"}});
    v.key("dtype", dtype, {.meaning = "of weights and activations", .choices = {"float32", "float64", "bfloat16"}});
    v.key("threads", threads, without_effect({"torch threads a rank", 1, 1024}));
  }
};

struct ParallelSection {  // of a run, and of each stage: by default the run's
  int64_t tensor = 1;
  int64_t pipeline = 1;  // data = ranks / (tensor * pipeline)
  std::vector<int64_t> pipeline_cuts;
  std::string recompute = "none";
  bool zero = false;
  bool sequence = false;

  bool operator==(const ParallelSection&) const = default;

  // A stage has those that mean something to it.
  void mesh_keys(KeyVisitor& v) {
    v.key("tensor", tensor, without_effect({"ranks a layer is split over", 1, 65536}));
    v.key("pipeline", pipeline,
          without_effect({"ranks the layers are dealt out to; the other ranks share the data", 1, 65536}));
    v.key("pipeline_cuts", pipeline_cuts,
          without_effect({.meaning = "first layers of pipeline ranks 1, 2, ...; empty: balanced by cost",
                          .least = 1,
                          .most = 65536,
                          .may_be_empty = true}));
  }
  void recompute_key(KeyVisitor& v) {
    v.key("recompute", recompute,
          without_effect(
              {.meaning = "full: keep a layer's input only and make its activations again in the backward pass",
               .choices = {"none", "full"}}));
  }
  void zero_key(KeyVisitor& v) {
    v.key("zero", zero, without_effect({"ZeRO-1: each data rank keeps its share of AdamW's states"}));
  }
  void sequence_key(KeyVisitor& v) {
    v.key("sequence", sequence,
          without_effect({"tensor ranks share the tokens, not only the heads: norms and residuals of a part each"}));
  }
  void keys(KeyVisitor& v) {
    mesh_keys(v);
    recompute_key(v);
    zero_key(v);
    sequence_key(v);
  }
};

struct DataSource {
  std::string path;
  double weight = 1.0;

  void keys(KeyVisitor& v) {
    v.key("path", path,
          {.meaning = "one of several texts, instead of text, jsonl or tokens: the prefix of its tokens, or a file, "
                      "folder or pattern (JSON lines where it is named .jsonl, .ndjson or .json)",
           .required = true,
           .is_path = true});
    v.key("weight", weight, {"its share of the tokens, over the sum of all weights", 1e-6, 1e6});
  }
};

struct DataSection {  // exactly one of text, jsonl, tokens and sources
  std::string text = "";
  std::string jsonl = "";
  std::string field = "text";
  std::string tokens = "";
  std::vector<DataSource> sources = {};
  int64_t shuffle = 1;
  double held_out = 0.1;

  void keys(KeyVisitor& v) {
    v.key("text", text,
          {.meaning = "UTF-8 text, a document a file: background of the passkeys, plain sequences, perplexity; a file, "
                      "folder or pattern, plain, gzip or zstd, 100 MB in all",
           .is_path = true});
    v.key("jsonl", jsonl, {.meaning = "the same of JSON lines, a document each, instead of text", .is_path = true});
    v.key("field", field, {"where a JSON line holds its document"});
    v.key("tokens", tokens,
          {.meaning = "prefix of .bin, .idx and .json as `flashmorph-dist tokenize` writes them, instead of text",
           .is_path = true});
    v.sections("sources", sources);
    v.key("shuffle", shuffle, {"the order of the documents follows from it; 0: as they lie", 0, kMany});
    v.key("held_out", held_out, {"last share of each text's tokens, kept for evaluate", 0.001, 0.9});
  }
};

// What the sequences of a stage are. Sample i of a stage is a pure function of (seed, stage, i).
struct SequenceSection {
  std::vector<int64_t> lengths = {512};
  double passkey_share = 0.5;
  Range passkeys = {4, 4};
  Range words = {8, 8};

  void length_keys(KeyVisitor& v) {
    v.key("lengths", lengths, {"tokens a sequence; each batch draws one of them", 2, kMany});
  }
  void passkey_keys(KeyVisitor& v) {
    v.key("passkeys", passkeys, {"passkeys a sequence, a number or [min, max]", 1, 10});
    v.key("words", words, {"words a passkey, a number or [min, max]", 1, 64});
  }
  void keys(KeyVisitor& v) {
    length_keys(v);
    v.key("passkey_share", passkey_share, {"share of sequences with passkeys; the rest is plain text", 0, 1});
    passkey_keys(v);
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

  int64_t steps() const;        // to come to all tokens
  int64_t longest() const;      // tokens of the longest sequence
  int64_t micro_batch() const;  // tokens a forward

 protected:
  void step_keys(KeyVisitor& v, bool required) {
    v.key("tokens", tokens,
          {.meaning = required ? "tokens in all, rounded up to whole batches" : "tokens in all; 0 leaves the stage out",
           .least = required ? 1.0 : 0.0,
           .most = kMany,
           .required = required});
    v.key("batch_tokens", batch_tokens, {"tokens a step, over all ranks", 2, kMany});
    v.key("micro_batch_tokens", micro_batch_tokens, {"tokens a forward; 0: the longest sequence", 0, kMany});
    v.section("lr", lr);
    v.key("warmup_steps", warmup_steps, {"steps of linear warm-up", 0, kMany});
    v.key("beta1", beta1, {"AdamW's first moment", 0, 0.999999});
    v.key("beta2", beta2, {"AdamW's second moment", 0, 0.999999});
  }
  void weight_keys(KeyVisitor& v, bool required) {
    step_keys(v, required);
    v.key("clip", clip, {"gradient norm at most; 0: off", 0, kMany});
    v.key("weight_decay", weight_decay, {"AdamW's decoupled decay", 0, 1});
    v.section("data", data);
  }
};

struct AlignSection : TrainingSection {
  void keys(KeyVisitor& v) {
    weight_keys(v, true);
    v.group("parallel", [&] {  // no backward crosses a layer
      parallel.mesh_keys(v);
      parallel.zero_key(v);
      parallel.sequence_key(v);
    });
  }
};

struct SelectSection : TrainingSection {
  SelectSection() {
    lr = {2e-2, 2e-3};
    clip = 0.0;
    data = {.lengths = {1024}, .passkey_share = 1.0, .passkeys = {10, 10}, .words = {32, 32}};  // only answers count
  }
  std::string method = "flashmorph";
  int64_t judge_samples = 64;
  KindSettings own{"selector"};  // of each method alone

  void keys(KeyVisitor& v) {
    v.key("method", method, {.meaning = "who picks the layers", .choices = kinds_of("selector")});
    v.key("judge_samples", judge_samples,
          {"held-out samples by which ablate, greedy, beam, exhaustive and halo judge a set of layers", 1, kMany});
    own.keys(v);
    step_keys(v, true);
    v.group("data", [&] {
      data.length_keys(v);
      data.passkey_keys(v);
    });
    v.group("parallel", [&] {  // a number a layer is trained
      parallel.mesh_keys(v);
      parallel.recompute_key(v);
      parallel.sequence_key(v);
    });
  }
};

struct DistillSection : TrainingSection {
  DistillSection() { lr = {1e-4, 1e-5}; }

  void keys(KeyVisitor& v) {
    weight_keys(v, false);
    v.section("parallel", parallel);
  }
};

struct FinetuneSection : TrainingSection {
  FinetuneSection() {
    lr = {1e-5, 1e-5};
    data.lengths = {1024};
  }

  void keys(KeyVisitor& v) {
    weight_keys(v, false);
    v.section("parallel", parallel);
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
    v.group("parallel", [&] { parallel.mesh_keys(v); });
  }
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

struct ReportSection {
  double price_per_gpu_hour = 0.0;

  void keys(KeyVisitor& v) {
    v.key("price_per_gpu_hour", price_per_gpu_hour,
          without_effect({"of a rank's hour, in any currency: what each stage cost, in report and status; 0: not shown",
                          0, kMany}));
  }
};

struct MetricsSection {
  std::string listen = "127.0.0.1:0";

  bool enabled() const { return listen != "off"; }

  void keys(KeyVisitor& v) {
    v.key("listen", listen,
          without_effect({"HOST:PORT of rank 0's Prometheus endpoint; port 0: a free one, named in "
                          "NAME.prometheus.json beside the run's folder; off: none"}));
  }
};

struct CheckpointSection {
  int64_t every = 50;
  int64_t keep = 2;

  void keys(KeyVisitor& v) {
    v.key("every", every,
          without_effect({"steps of a training stage between two checkpoints; 0: only when asked to stop", 0, kMany}));
    v.key("keep", keep, without_effect({"newest checkpoints kept", 1, 1000}));
  }
};

struct HealthSection {  // past a deadline the run ends and names who is missing
  double load = 1800.0;
  double step = 600.0;
  double save = 600.0;
  double evaluate = 1800.0;
  double straggler = 3.0;
  int64_t weights_every = 200;

  void keys(KeyVisitor& v) {
    v.key("load", load, without_effect({"seconds that reading model and data may take", 0.1, kMany}));
    v.key("step", step, without_effect({"seconds that a training step may take", 0.1, kMany}));
    v.key("save", save, without_effect({"seconds that writing a result or checkpoint may take", 0.1, kMany}));
    v.key("evaluate", evaluate, without_effect({"seconds that measuring one model may take", 0.1, kMany}));
    v.key("straggler", straggler, without_effect({"a rank so many times slower than the median is named", 1, kMany}));
    v.key("weights_every", weights_every,
          without_effect({"steps between checks of the frozen weights' checksums; 0: none", 0, kMany}));
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
    v.section("select", select);
    v.section("distill", distill);
    v.section("finetune", finetune);
    v.section("evaluate", evaluate);
    v.section("export", export_);
  }
};

struct RunConfig {
  RunSection run;
  ModelSection model;
  MixerSection mixer;
  BudgetSection budget;
  DeviceSection device;
  ParallelSection parallel;
  DataSection data;
  StagesSection stages;
  ReportSection report;
  MetricsSection metrics;
  CheckpointSection checkpoint;
  HealthSection health;

  // Reads and checks everything that needs no other file; all faults at once in one BadInput. `set` holds
  // "key.path=value" overrides from the command line, applied before the checks. Relative paths stay relative to the
  // working directory.
  static RunConfig from_yaml(const std::string& text, const std::string& file_name,
                             const std::vector<std::string>& set = {});
  static RunConfig from_file(const std::filesystem::path& file, const std::vector<std::string>& set = {});

  // Every key with its value in a fixed order, defaults spelled out; from_yaml(to_yaml()) is the same config.
  std::string to_yaml() const;

  void keys(KeyVisitor& v) {
    v.section("run", run);
    v.section("model", model);
    v.section("mixer", mixer);
    v.section("budget", budget);
    v.section("device", device);
    v.section("parallel", parallel);
    if (v.reads())
      for (ParallelSection* stage : stages.parallels()) *stage = parallel;
    v.section("data", data);
    v.section("stages", stages);
    v.section("report", report);
    v.section("metrics", metrics);
    v.section("checkpoint", checkpoint);
    v.section("health", health);
  }
};

// The YAML reference as a Markdown table: key, default, meaning and range, as the sections' keys() say them.
std::string yaml_reference();

}  // namespace flashmorph
