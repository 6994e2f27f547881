#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/config/keys.h"
#include "core/config/kinds.h"
#include "core/config/stage_sections.h"

namespace flashmorph {

// What one run does, from a YAML file: plain values with their defaults, and below them, in keys(), what each is. A
// field name is its YAML key.

struct RunSection {
  std::string name = "run";
  std::string dir = "runs";
  int64_t seed = 1;
  double time_limit = 0.0;

  void keys(KeyVisitor& v) {
    v.may_change("name", name, {"name of the run; its folder is dir/name"});
    v.may_change("dir", dir, {.meaning = "folder of all runs", .is_path = true});
    v.key("seed", seed, {"all randomness follows from it", 0, kMany});
    v.may_change("time_limit", time_limit,
                 {"seconds until this start writes a checkpoint and exits with 75; 0: no limit but that of its "
                  "Slurm job",
                  0, kMany});
  }
  void rules(KeyVisitor& v) const;
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
    v.may_change("chunk", chunk, {"tokens a chunk of linear attention; changes speed, not results", 1, 4096});
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
  void rules(KeyVisitor& v) const;
};

struct DeviceSection {
  std::string kind = "cpu";
  std::string dtype = "float32";  // with bfloat16 losses, gates and states stay wider
  std::string frozen_dtype = "same";
  int64_t threads = 1;

  void keys(KeyVisitor& v) {
    v.key("kind", kind,
          {.meaning = "where tensors live; cuda: each rank of a host takes a card", .choices = {"cpu", "cuda"}});
    v.key("dtype", dtype, {.meaning = "of weights and activations", .choices = {"float32", "float64", "bfloat16"}});
    v.key("frozen_dtype", frozen_dtype,
          {.meaning = "of the operands of products with the frozen projections in align, select and distill; fp8: "
                      "float8 e4m3 with a scale a row, sums in float32; on cuda from cards of Ada and Hopper on",
           .choices = {"same", "fp8"}});
    v.may_change("threads", threads, {"torch threads a rank", 1, 1024});
  }
  void rules(KeyVisitor& v) const;
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
  void rules(KeyVisitor& v) const;
};

struct ReportSection {
  double price_per_gpu_hour = 0.0;

  void keys(KeyVisitor& v) {
    v.may_change(
        "price_per_gpu_hour", price_per_gpu_hour,
        {"of a rank's hour, in any currency: what each stage cost, in report and status; 0: not shown", 0, kMany});
  }
};

struct MetricsSection {
  std::string listen = "127.0.0.1:0";

  bool enabled() const { return listen != "off"; }

  void keys(KeyVisitor& v) {
    v.may_change("listen", listen,
                 {"HOST:PORT of rank 0's Prometheus endpoint; port 0: a free one, named in "
                  "NAME.prometheus.json beside the run's folder; off: none"});
  }
  void rules(KeyVisitor& v) const;
};

struct CheckpointSection {
  int64_t every = 50;
  int64_t keep = 2;

  void keys(KeyVisitor& v) {
    v.may_change("every", every,
                 {"steps of a training stage between two checkpoints; 0: only when asked to stop", 0, kMany});
    v.may_change("keep", keep, {"newest checkpoints kept", 1, 1000});
  }
};

struct HealthSection {  // past a deadline the run ends and names who is missing
  double load = 1800.0;
  double step = 600.0;
  double save = 600.0;
  double evaluate = 1800.0;
  double straggler = 3.0;
  int64_t weights_every = 200;
  bool sniff = false;

  void keys(KeyVisitor& v) {
    v.may_change("load", load, {"seconds that reading model and data may take", 0.1, kMany});
    v.may_change("step", step, {"seconds that a training step may take", 0.1, kMany});
    v.may_change("save", save, {"seconds that writing a result or checkpoint may take", 0.1, kMany});
    v.may_change("evaluate", evaluate, {"seconds that measuring one model may take", 0.1, kMany});
    v.may_change("straggler", straggler, {"a rank so many times slower than the median is named", 1, kMany});
    v.may_change("weights_every", weights_every,
                 {"steps between checks of the frozen weights' checksums; 0: none", 0, kMany});
    v.may_change("sniff", sniff,
                 {"at the start measure each rank's matrix product and memory and each link between them, a few "
                  "seconds, and name those that are slow beside the others"});
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
