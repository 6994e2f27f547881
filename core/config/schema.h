#pragma once

#include <limits>
#include <string>
#include <vector>

#include "core/config/run_config.h"

// The one table of keys: what reading, writing and the reference walk over. A visitor has
//   void key(const char* name, Value& value, const Rule& rule)   for each value
//   void section(const char* name, Section& section)             for each nested section, by calling visit on it
// and may have
//   void inherit(const Value& from, std::vector<Value*> to)      sections whose keys default to another section's

namespace flashmorph::schema {

struct Rule {
  const char* meaning;
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};
  bool required = false;
  const char* why = "";       // why there are no more choices
  bool may_be_empty = false;  // a list
};

constexpr double kMany = 1e15;  // "no limit" for whole numbers: a double still holds each of them exactly

template <class Visitor>
void visit(Visitor& v, RunSection& s) {
  v.key("name", s.name, {"name of the run; its folder is dir/name"});
  v.key("dir", s.dir, {"folder of all runs"});
  v.key("seed", s.seed, {"all randomness follows from it", 0, kMany});
  v.key("time_limit", s.time_limit,
        {"seconds until this start writes a checkpoint and exits with 75; 0: no limit but that of its Slurm job", 0,
         kMany});
}

template <class Visitor>
void visit(Visitor& v, ModelSection& s) {
  v.key(
      "path", s.path,
      {.meaning = "Hugging Face folder of the teacher: config.json, *.safetensors, tokenizer.json", .required = true});
}

template <class Visitor>
void visit(Visitor& v, MixerSection& s) {
  v.key("kind", s.kind, {"linear attention of the branches: lightning, gla, gated_delta_net, or one of your own"});
  v.key("decay", s.decay, {.meaning = "lightning's decay per head", .choices = {"alibi", "retnet", "layered"}});
  v.key("output_norm", s.output_norm,
        {.meaning = "RMSNorm of the branch's output: over each head, or (lightning) over all heads",
         .choices = {"head", "hidden"}});
  v.key("rope", s.rope, {"rotate queries and keys, in lightning and gla; gated_delta_net never does"});
  v.key("init", s.init,
        {.meaning = "decays of gla and gated_delta_net at the start: the usual ones, or half-lives from the mean "
                    "distance of the teacher's attention",
         .choices = {"default", "data"}});
  v.key("chunk", s.chunk, {"tokens a chunk of linear attention; changes speed, not results", 1, 4096});
}

template <class Visitor>
void visit(Visitor& v, BudgetSection& s) {
  v.key("full_layers", s.full_layers, {"K, the layers that keep full attention; 0: another budget", 0, 10000});
  v.key("ratio", s.ratio, {"linear to full layers, e.g. 3:1, instead of full_layers"});
  v.key("kv_bytes_per_token", s.kv_bytes_per_token,
        {"bytes of the hybrid's KV cache a token, at device.dtype, instead of full_layers", 0, kMany});
  v.key("milliseconds", s.milliseconds,
        {"time of the hybrid's attention layers, a forward over one sequence on these ranks, measured at the start; "
         "instead of full_layers",
         0, kMany});
  v.key("length", s.length, {"tokens of that sequence", 1, kMany});
}

template <class Visitor>
void visit(Visitor& v, DeviceSection& s) {
  v.key("kind", s.kind,
        {.meaning = "where tensors live; cuda: each rank of a host takes a card", .choices = {"cpu", "cuda"}});
  v.key("dtype", s.dtype, {.meaning = "of weights and activations", .choices = {"float32", "float64", "bfloat16"}});
  v.key("threads", s.threads, {"torch threads a rank", 1, 1024});
}

// What a section of `parallel` keys holds: a stage has those that mean something to it.
template <class Visitor>
void visit_mesh(Visitor& v, ParallelSection& s) {
  v.key("tensor", s.tensor, {"ranks a layer is split over", 1, 65536});
  v.key("pipeline", s.pipeline, {"ranks the layers are dealt out to; the other ranks share the data", 1, 65536});
  v.key("pipeline_cuts", s.pipeline_cuts,
        {.meaning = "first layers of pipeline ranks 1, 2, ...; empty: balanced by cost",
         .least = 1,
         .most = 65536,
         .may_be_empty = true});
}
template <class Visitor>
void visit_recompute(Visitor& v, ParallelSection& s) {
  v.key("recompute", s.recompute,
        {.meaning = "full: keep a layer's input only and make its activations again in the backward pass",
         .choices = {"none", "full"}});
}
template <class Visitor>
void visit_zero(Visitor& v, ParallelSection& s) {
  v.key("zero", s.zero, {"ZeRO-1: each data rank keeps its share of AdamW's states"});
}

template <class Visitor>
void visit_sequence(Visitor& v, ParallelSection& s) {
  v.key("sequence", s.sequence,
        {"tensor ranks share the tokens, not only the heads: norms and residuals of a part each"});
}

template <class Visitor>
void visit(Visitor& v, ParallelSection& s) {
  visit_mesh(v, s);
  visit_recompute(v, s);
  visit_zero(v, s);
  visit_sequence(v, s);
}

struct AlignParallel {  // no backward crosses a layer
  ParallelSection& parallel;
};
template <class Visitor>
void visit(Visitor& v, AlignParallel& s) {
  visit_mesh(v, s.parallel);
  visit_zero(v, s.parallel);
  visit_sequence(v, s.parallel);
}
struct SelectParallel {  // a number a layer is trained
  ParallelSection& parallel;
};
template <class Visitor>
void visit(Visitor& v, SelectParallel& s) {
  visit_mesh(v, s.parallel);
  visit_recompute(v, s.parallel);
  visit_sequence(v, s.parallel);
}
struct EvaluateParallel {
  ParallelSection& parallel;
};
template <class Visitor>
void visit(Visitor& v, EvaluateParallel& s) {
  visit_mesh(v, s.parallel);
}

template <class Visitor>
void visit(Visitor& v, DataSection& s) {
  v.key("text", s.text, {"UTF-8 text file, one document: background of the passkeys, plain sequences, perplexity"});
  v.key("jsonl", s.jsonl, {"JSON lines, a document each, instead of text"});
  v.key("field", s.field, {"where a line of jsonl holds its document"});
  v.key("tokens", s.tokens,
        {"prefix of .bin, .idx and .json as `flashmorph-dist tokenize` writes them, instead of text"});
  v.key("held_out", s.held_out, {"last share of the tokens, kept for evaluate", 0.001, 0.9});
}

template <class Visitor>
void visit_sequences(Visitor& v, SequenceSection& s, bool shares) {
  v.key("lengths", s.lengths, {"tokens a sequence; each batch draws one of them", 2, kMany});
  if (shares)
    v.key("passkey_share", s.passkey_share, {"share of sequences with passkeys; the rest is plain text", 0, 1});
  v.key("passkeys", s.passkeys, {"passkeys a sequence, a number or [min, max]", 1, 10});
  v.key("words", s.words, {"words a passkey, a number or [min, max]", 1, 64});
}

template <class Visitor>
void visit(Visitor& v, SequenceSection& s) {
  visit_sequences(v, s, true);
}

struct AnswerSequences {  // select's data: passkeys always
  SequenceSection& data;
};
template <class Visitor>
void visit(Visitor& v, AnswerSequences& s) {
  visit_sequences(v, s.data, false);
}

template <class Visitor>
void visit(Visitor& v, LearningRate& s) {
  v.key("from", s.from, {"learning rate after the warm-up", 1e-12, 100});
  v.key("to", s.to, {"learning rate at the last step (cosine)", 0, 100});
}

template <class Visitor>
void visit_steps(Visitor& v, TrainingSection& s, bool required) {
  v.key("tokens", s.tokens,
        {required ? "tokens in all, rounded up to whole batches" : "tokens in all; 0 leaves the stage out",
         required ? 1.0 : 0.0,
         kMany,
         {},
         required});
  v.key("batch_tokens", s.batch_tokens, {"tokens a step, over all ranks", 2, kMany});
  v.key("micro_batch_tokens", s.micro_batch_tokens, {"tokens a forward; 0: the longest sequence", 0, kMany});
  v.section("lr", s.lr);
  v.key("warmup_steps", s.warmup_steps, {"steps of linear warm-up", 0, kMany});
  v.key("beta1", s.beta1, {"AdamW's first moment", 0, 0.999999});
  v.key("beta2", s.beta2, {"AdamW's second moment", 0, 0.999999});
}

template <class Visitor>
void visit_training(Visitor& v, TrainingSection& s, bool required) {
  visit_steps(v, s, required);
  v.key("clip", s.clip, {"gradient norm at most; 0: off", 0, kMany});
  v.key("weight_decay", s.weight_decay, {"AdamW's decoupled decay", 0, 1});
  v.section("data", s.data);
}

template <class Visitor>
void visit(Visitor& v, AlignSection& s) {
  visit_training(v, s, true);
  AlignParallel parallel{s.parallel};
  v.section("parallel", parallel);
}
template <class Visitor>
void visit(Visitor& v, DistillSection& s) {
  visit_training(v, s, false);
  v.section("parallel", s.parallel);
}
template <class Visitor>
void visit(Visitor& v, FinetuneSection& s) {
  visit_training(v, s, false);
  v.section("parallel", s.parallel);
}

template <class Visitor>
void visit(Visitor& v, SelectSection& s) {
  v.key("method", s.method,
        {"who picks the layers: flashmorph by the gates; ablate, greedy, beam, exhaustive, halo by measuring hard "
         "mixtures; uniform; random; given by a list; all_linear none"});
  v.key("gate_penalty", s.gate_penalty, {"lambda, the pull of every gate towards linear attention", 0, kMany});
  v.key("layers", s.layers,
        {.meaning = "given: the layers that keep full attention, from 0 on",
         .least = 0,
         .most = 9999,
         .may_be_empty = true});
  v.key("plan", s.plan, {"given, instead of layers: plan.json of another run, whose own pick is taken"});
  v.key("seed", s.seed, {"random: the pick follows from it", 0, kMany});
  v.key("judge_samples", s.judge_samples,
        {"ablate, greedy, beam, exhaustive, halo: held-out samples that judge a set of layers", 1, kMany});
  v.key("beam_width", s.beam_width, {"beam: sets that are kept from one size to the next", 1, 1000});
  v.key("most_sets", s.most_sets, {"exhaustive: refused when more sets fill the budget", 1, 1e6});
  v.key("halo_scores", s.halo_scores,
        {"halo: JSON with lists commonsense and recall, a number for the model without each layer's full attention; "
         "empty: measured"});
  visit_steps(v, s, true);
  AnswerSequences sequences{s.data};
  v.section("data", sequences);
  SelectParallel parallel{s.parallel};
  v.section("parallel", parallel);
}

template <class Visitor>
void visit(Visitor& v, EvaluateSection& s) {
  v.key("compare", s.compare, {"methods whose picks get the same training and are measured too"});
  v.key("lengths", s.lengths, {"tokens of the recall samples", 2, kMany});
  v.key("passkeys", s.passkeys, {"passkeys a sample", 1, 10});
  v.key("words", s.words, {"words a passkey", 1, 64});
  v.key("samples", s.samples, {"samples a length, teacher-forced", 1, kMany});
  v.key("greedy_samples", s.greedy_samples, {"of them, also answered by greedy decoding", 0, kMany});
  v.key("depths", s.depths, {"buckets of depth in evaluation.json", 1, 100});
  v.key("perplexity_tokens", s.perplexity_tokens, {"held-out tokens for perplexity", 2, kMany});
  v.key("perplexity_length", s.perplexity_length, {"tokens a window", 2, kMany});
  EvaluateParallel parallel{s.parallel};
  v.section("parallel", parallel);
}

template <class Visitor>
void visit(Visitor& v, ExportSection& s) {
  v.key("enabled", s.enabled, {"write a Hugging Face folder at the end"});
  v.key("format", s.format,
        {.meaning = "of the folder: qwen3_5_text needs no remote code but holds few hybrids; flashmorph holds all; "
                    "auto takes the "
                    "first that can",
         .choices = {"auto", "qwen3_5_text", "flashmorph"}});
}

template <class Visitor>
void visit(Visitor& v, MetricsSection& s) {
  v.key("listen", s.listen,
        {"HOST:PORT of rank 0's Prometheus endpoint; port 0: a free one, named in NAME.prometheus.json beside the "
         "run's folder; off: none"});
}

template <class Visitor>
void visit(Visitor& v, CheckpointSection& s) {
  v.key("every", s.every, {"steps of a training stage between two checkpoints; 0: only when asked to stop", 0, kMany});
  v.key("keep", s.keep, {"newest checkpoints kept", 1, 1000});
}

template <class Visitor>
void visit(Visitor& v, HealthSection& s) {
  v.key("load", s.load, {"seconds that reading model and data may take", 0.1, kMany});
  v.key("step", s.step, {"seconds that a training step may take", 0.1, kMany});
  v.key("save", s.save, {"seconds that writing a result or checkpoint may take", 0.1, kMany});
  v.key("evaluate", s.evaluate, {"seconds that measuring one model may take", 0.1, kMany});
  v.key("straggler", s.straggler, {"a rank so many times slower than the median is named", 1, kMany});
  v.key("weights_every", s.weights_every, {"steps between checks of the frozen weights' checksums; 0: none", 0, kMany});
}

template <class Visitor>
void visit(Visitor& v, StagesSection& s) {
  v.section("align", s.align);
  v.section("select", s.select);
  v.section("distill", s.distill);
  v.section("finetune", s.finetune);
  v.section("evaluate", s.evaluate);
  v.section("export", s.export_);
}

template <class Visitor>
void visit(Visitor& v, RunConfig& s) {
  v.section("run", s.run);
  v.section("model", s.model);
  v.section("mixer", s.mixer);
  v.section("budget", s.budget);
  v.section("device", s.device);
  v.section("parallel", s.parallel);
  if constexpr (requires { v.inherit(s.parallel, {&s.parallel}); })
    v.inherit(s.parallel, {&s.stages.align.parallel, &s.stages.select.parallel, &s.stages.distill.parallel,
                           &s.stages.finetune.parallel, &s.stages.evaluate.parallel});
  v.section("data", s.data);
  v.section("stages", s.stages);
  v.section("metrics", s.metrics);
  v.section("checkpoint", s.checkpoint);
  v.section("health", s.health);
}

}  // namespace flashmorph::schema
