#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace flashmorph {

// What one run does, from a YAML file: plain values with their defaults; units and meanings stand beside each field.
// A field name is its YAML key.

struct Range {  // inclusive; in YAML a number, or [min, max]
  int64_t min;
  int64_t max;
};

struct RunSection {
  std::string name = "run";  // the run folder is dir/name
  std::string dir = "runs";
  int64_t seed = 1;
  double time_limit = 0.0;  // seconds of this start; then a checkpoint and exit code 75. 0: Slurm's end time, if any
};

struct ModelSection {
  std::string path;  // a Hugging Face folder: config.json, *.safetensors, tokenizer.json
};

struct MixerSection {
  std::string kind = "lightning";
  std::string decay = "alibi";  // lightning's log-decay by global head: alibi (HALO's slopes), retnet, layered (FLA's)
  std::string output_norm = "head";  // RMSNorm of the output over each head, or lightning's over all heads ("hidden")
  bool rope = true;                  // rotate queries and keys as the teacher does; gated_delta_net never does
  std::string init = "default";  // decays of gla and gated_delta_net at the start: usual, or from the teacher ("data")
  int64_t chunk = 64;            // tokens a chunk
};

struct BudgetSection {             // exactly one of these; 0 and "": not given
  int64_t full_layers = 0;         // K, the layers that keep full attention
  std::string ratio;               // linear to full layers, e.g. "3:1"
  int64_t kv_bytes_per_token = 0;  // of the hybrid's KV cache, at device.dtype
  double milliseconds = 0.0;       // of the hybrid's attention layers, forward over one sequence, measured at the start
  int64_t length = 4096;           // tokens of that sequence

  bool counts_layers() const { return full_layers > 0 || !ratio.empty(); }
  // K for a model of so many layers, when the budget counts layers; BadInput when it is not in [1, layers - 1].
  int64_t full_layers_of(int64_t model_layers) const;
};

struct DeviceSection {
  std::string kind = "cpu";
  std::string dtype = "float32";  // float32, float64, or bfloat16; with bfloat16 losses, gates and states stay wider
  int64_t threads = 1;            // torch threads a rank
};

struct ParallelSection {               // of a run, and of each stage: by default the run's
  int64_t tensor = 1;                  // ranks a layer is split over
  int64_t pipeline = 1;                // ranks the layers are dealt out to; data = ranks / (tensor * pipeline)
  std::vector<int64_t> pipeline_cuts;  // the first layers of pipeline ranks 1, 2, ...; empty: balanced by cost
  std::string recompute = "none";      // none, or full: a layer's activations are made again in the backward pass
  bool zero = false;                   // ZeRO-1: each data rank keeps its share of AdamW's states
  bool sequence = false;  // sequence parallel: tensor ranks share the tokens between split layers, norms too

  bool operator==(const ParallelSection&) const = default;
};

struct DataSection {       // background of the passkeys, plain sequences and perplexity; exactly one of text, jsonl and
                           // tokens
  std::string text = "";   // a UTF-8 text file, one document
  std::string jsonl = "";  // a file of JSON lines, each a document
  std::string field = "text";  // where a JSON line holds its document
  std::string tokens = "";     // the prefix of tokenized files: PREFIX.bin, .idx and .json
  double held_out = 0.1;       // the last share of its tokens, kept for `evaluate`
};

// What the sequences of a stage are. Sample i of a stage is a pure function of (seed, stage, i).
struct SequenceSection {
  std::vector<int64_t> lengths = {512};  // tokens a sequence; each batch draws one of them
  double passkey_share = 0.5;            // share of sequences that hold passkeys and questions; the rest is plain text
  Range passkeys = {4, 4};               // passkeys a sequence
  Range words = {8, 8};                  // words a passkey
};

struct LearningRate {  // cosine from `from` to `to` after a linear warm-up
  double from;
  double to;
};

struct TrainingSection {
  int64_t tokens = 0;              // in all; rounded up to whole batches
  int64_t batch_tokens = 8192;     // a step's tokens over all ranks
  int64_t micro_batch_tokens = 0;  // tokens a forward; 0: the longest sequence
  LearningRate lr = {1e-3, 1e-5};
  int64_t warmup_steps = 0;
  double clip = 1.0;  // gradient norm at most; 0: off
  double weight_decay = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  SequenceSection data;
  ParallelSection parallel;

  int64_t steps() const;        // to come to all tokens
  int64_t longest() const;      // tokens of the longest sequence
  int64_t micro_batch() const;  // tokens a forward
};

struct AlignSection : TrainingSection {};

struct SelectSection : TrainingSection {
  SelectSection() {
    lr = {2e-2, 2e-3};
    clip = 0.0;
    data = {.lengths = {1024}, .passkey_share = 1.0, .passkeys = {10, 10}, .words = {32, 32}};  // only answers count
  }
  std::string method = "flashmorph";  // a selector's name (core/select)
  double gate_penalty = 0.1;          // lambda, the pull of every gate towards linear attention
  std::vector<int64_t> layers;        // given's
  std::string plan;                   // given's, instead of layers: another run's plan.json
  int64_t seed = 1;                   // random's
  int64_t judge_samples = 64;         // held-out samples on which methods that measure judge a set of layers
  int64_t beam_width = 4;             // beam's
  int64_t most_sets = 1000;           // exhaustive's
  std::string halo_scores;            // halo's, instead of measuring: a file
};

struct DistillSection : TrainingSection {  // tokens 0: the stage is left out
  DistillSection() { lr = {1e-4, 1e-5}; }
};

struct FinetuneSection : TrainingSection {  // tokens 0: the stage is left out
  FinetuneSection() {
    lr = {1e-5, 1e-5};
    data.lengths = {1024};
  }
};

struct EvaluateSection {
  std::vector<std::string> compare = {"uniform", "all_linear"};  // picks that get the same distillation
  std::vector<int64_t> lengths = {512, 1024};                    // tokens a recall sample
  int64_t passkeys = 4;
  int64_t words = 8;
  int64_t samples = 32;        // recall samples a length, teacher-forced
  int64_t greedy_samples = 4;  // of them, also answered by greedy decoding with a cache
  int64_t depths = 4;          // buckets of depth in the report
  int64_t perplexity_tokens = 16384;
  int64_t perplexity_length = 512;
  ParallelSection parallel;
};

struct ExportSection {
  bool enabled = true;
  std::string format = "auto";  // auto: the first of qwen3_5_text, flashmorph that can hold the hybrid
};

struct MetricsSection {
  std::string listen =
      "127.0.0.1:0";  // HOST:PORT of the Prometheus endpoint of rank 0; port 0: any free one; off: none

  bool enabled() const { return listen != "off"; }
};

struct CheckpointSection {  // inside a training stage
  int64_t every = 50;       // steps; 0: only when the run is asked to stop
  int64_t keep = 2;         // newest ones kept
};

struct HealthSection {  // deadlines in seconds; past one, the run ends and names who is missing
  double load = 1800.0;
  double step = 600.0;
  double save = 600.0;
  double evaluate = 1800.0;
  double straggler = 3.0;       // a rank so many times slower than the median is named
  int64_t weights_every = 200;  // steps between checks of the frozen weights' checksums; 0: none
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
};

// The YAML reference as a Markdown table: key, default, unit and meaning. Made from the same table that reads the
// file, so it cannot drift.
std::string yaml_reference();

}  // namespace flashmorph
