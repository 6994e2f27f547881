// Times a stage of a random model in the shape of Qwen3 (1.7B, 8B) or SmolLM2 (135M) on one card; one line of JSON.
//   stages_gpu --stage select --sequences 1 --length 16384 [--shape 1.7B|8B|135M] [--steps 6] [--profile]
//     [--frozen-dtype fp8]
//     [--jsonl FILE | --tokens FILES, with --tokenizer FILE]   packed documents instead of passkeys in one text
// The stage is the program's own, data and all; from the repository's root. The first steps are not counted, a step's
// time is the median of the others. --profile: then one more step under torch's profiler: how many kernels, how much of
// the median step they take, their times by name, and when the card had nothing to do.

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "core/base/host_name.h"
#include "core/mixer/linear_branch.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/stages/align.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "launcher/device.h"

namespace flashmorph {
namespace {

namespace profiler = torch::autograd::profiler;
namespace profiling = torch::profiler::impl;

constexpr int64_t kWarmUp = 2;

ModelSpec spec_of(const std::string& shape) {
  ModelSpec spec;
  spec.model_type = "qwen3";
  spec.vocabulary = 151936;
  spec.head_dim = 128;
  spec.kv_heads = 8;
  spec.max_positions = 1 << 20;
  spec.query_key_norm = true;
  if (shape == "135M") {
    spec.model_type = "llama", spec.vocabulary = 49152, spec.query_key_norm = false, spec.tied_embeddings = true;
    spec.hidden = 576, spec.intermediate = 1536, spec.layers = 30, spec.heads = 9, spec.kv_heads = 3,
    spec.head_dim = 64;
  } else if (shape == "1.7B") {
    spec.hidden = 2048, spec.intermediate = 6144, spec.layers = 28, spec.heads = 16, spec.tied_embeddings = true;
  } else if (shape == "8B") {
    spec.hidden = 4096, spec.intermediate = 12288, spec.layers = 36, spec.heads = 32, spec.tied_embeddings = false;
  } else {
    throw std::invalid_argument("--shape is 1.7B, 8B or 135M, not " + shape);
  }
  return spec;
}

// Unit gain: matrices of standard deviation 1 / sqrt(inputs), norms of ones.
MorphableModel random_model(const ModelSpec& spec, const Placement& placement, Mesh& mesh, const MixerSection& mixer) {
  const auto options = at::TensorOptions(placement.dtype).device(placement.device);
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return at::randn({rows, columns}, options).div_(std::sqrt(static_cast<double>(columns)));
  };
  const auto norm = [&](int64_t size) { return at::ones({size}, options); };
  const int64_t queries = spec.heads * spec.head_dim, keys = spec.kv_heads * spec.head_dim;

  EmbeddingWeights embedding{matrix(spec.vocabulary, spec.hidden)};
  std::vector<MorphableLayer> layers(spec.layers);
  for (MorphableLayer& layer : layers) {
    layer.block.input_norm = norm(spec.hidden);
    layer.block.post_norm = norm(spec.hidden);
    layer.block.mlp.gate = matrix(spec.intermediate, spec.hidden);
    layer.block.mlp.up = matrix(spec.intermediate, spec.hidden);
    layer.block.mlp.down = matrix(spec.hidden, spec.intermediate);
    layer.attention.emplace();
    layer.attention->q = matrix(queries, spec.hidden);
    layer.attention->k = matrix(keys, spec.hidden);
    layer.attention->v = matrix(keys, spec.hidden);
    layer.attention->o = matrix(spec.hidden, queries);
    if (!spec.query_key_norm) continue;
    layer.attention->q_norm = norm(spec.head_dim);
    layer.attention->k_norm = norm(spec.head_dim);
  }
  HeadWeights head{norm(spec.hidden), spec.tied_embeddings ? embedding.tokens : matrix(spec.vocabulary, spec.hidden)};
  MorphableModel model =
      MorphableModel::assemble(spec, placement, mesh.shard(), std::move(embedding), std::move(layers), std::move(head));
  model.add_branches(mixer, 1);
  return model;
}

// Notes when each step ended; the last one may run under the profiler.
class StepTimes : public StageObserver {
 public:
  StepTimes(int64_t steps, bool profile) : steps_(steps), profile_(profile) {}

  void started(const StageStart&) override { last_ = watch_.seconds(); }
  void stepped(const StepReport& report) override {
    const double now = watch_.seconds();
    seconds_.push_back(now - last_);
    loss_ = report.loss;
    if (profile_ && report.step == steps_) {
      profiler::prepareProfiler(profiler_config(), {profiling::ActivityType::CUDA});
      profiler::enableProfiler(profiler_config(), {profiling::ActivityType::CUDA});
    }
    if (profile_ && report.step == steps_ + 1) collect(*profiler::disableProfiler());
    last_ = watch_.seconds();
  }

  double median() const {
    std::vector<double> counted(seconds_.begin() + kWarmUp, seconds_.begin() + steps_);
    std::ranges::nth_element(counted, counted.begin() + static_cast<std::ptrdiff_t>(counted.size() / 2));
    return counted[counted.size() / 2];
  }
  double loss() const { return loss_; }
  const std::vector<double>& seconds() const { return seconds_; }
  const nlohmann::json& kernels() const { return kernels_; }
  nlohmann::json idle() const { return {{"ms", idle_ms_}, {"longest", idle_}}; }
  int64_t launches() const { return launches_; }
  double busy() const { return kernels_ms_ * 1e-3 / median(); }

 private:
  static profiling::ProfilerConfig profiler_config() {
    return profiling::ProfilerConfig(profiling::ProfilerState::KINETO);
  }

  void collect(const profiler::ProfilerResult& result) {
    std::map<std::string, std::pair<double, int64_t>> by_name;
    for (const profiler::KinetoEvent& event : result.events())
      if (event.deviceType() == at::kCUDA) {
        by_name[event.name()].first += static_cast<double>(event.durationNs()) * 1e-6;
        ++by_name[event.name()].second;
      }
    for (const auto& [name, time] : by_name)
      kernels_.push_back({{"kernel", name}, {"ms", time.first}, {"calls", time.second}});
    for (const auto& [name, time] : by_name) kernels_ms_ += time.first, launches_ += time.second;
    collect_idle(result);
  }

  struct Span {
    uint64_t start, end;
    std::string name;
  };

  // The longest times in which nothing ran on the card: how far into the step, between which kernels, and which call to
  // CUDA the host was in most of it.
  void collect_idle(const profiler::ProfilerResult& result) {
    std::vector<Span> ran, calls;
    for (const profiler::KinetoEvent& event : result.events())
      (event.deviceType() == at::kCUDA ? ran : calls)
          .push_back({event.startNs(), event.startNs() + event.durationNs(), event.name()});
    std::ranges::sort(ran, {}, &Span::start);

    std::vector<Span> idle;
    const Span* last = nullptr;  // of those so far the one that ended last
    for (const Span& next : ran) {
      if (last != nullptr && next.start > last->end)
        idle.push_back({last->end, next.start, last->name + " -> " + next.name});
      if (last == nullptr || next.end > last->end) last = &next;
    }
    std::ranges::sort(idle, std::greater<>(), [](const Span& gap) { return gap.end - gap.start; });
    for (const Span& gap : idle) idle_ms_ += milliseconds(gap.end - gap.start);
    idle.resize(std::min<size_t>(idle.size(), 12));
    for (const Span& gap : idle) {
      const auto overlap = [&](const Span& call) {
        return std::min(call.end, gap.end) - std::min(std::max(call.start, gap.start), std::min(call.end, gap.end));
      };
      nlohmann::json one = {{"ms", milliseconds(gap.end - gap.start)},
                            {"at_ms", milliseconds(gap.start - ran.front().start)},
                            {"between", gap.name}};
      if (!calls.empty()) {
        const Span& call = *std::ranges::max_element(calls, {}, overlap);
        one["host_in"] = {{"call", call.name}, {"ms", milliseconds(overlap(call))}};
      }
      idle_.push_back(std::move(one));
    }
  }

  static double milliseconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-6; }

  int64_t steps_;
  bool profile_;
  Stopwatch watch_;
  double last_ = 0.0, loss_ = 0.0, kernels_ms_ = 0.0, idle_ms_ = 0.0;
  int64_t launches_ = 0;
  std::vector<double> seconds_;
  nlohmann::json kernels_ = nlohmann::json::array(), idle_ = nlohmann::json::array();
};

struct Request {
  std::string shape = "1.7B", stage = "select", mixer = "lightning";
  std::string frozen_dtype = "same";
  std::string tokenizer = "tests/data/passkey-teacher/tokenizer.json", jsonl, tokens;
  int64_t sequences = 1, length = 16384, steps = 6, chunk = 128;
  bool profile = false;
};

RunConfig config_of(const Request& request) {
  const int64_t tokens = request.sequences * request.length, steps = request.steps + (request.profile ? 1 : 0);
  const std::string section = "{tokens: " + std::to_string(tokens * steps) +
                              ", batch_tokens: " + std::to_string(tokens) +
                              ", micro_batch_tokens: " + std::to_string(tokens) +
                              ", data: {lengths: " + std::to_string(request.length) + ", passkeys: [2, 10], words: 8";
  const bool documents = !request.jsonl.empty() || !request.tokens.empty();
  const std::string text = !request.jsonl.empty()    ? "jsonl: " + request.jsonl
                           : !request.tokens.empty() ? "tokens: " + request.tokens
                                                     : "text: tests/data/text/tinyshakespeare.txt";
  const std::string of_text = section + (documents ? ", passkey_share: 0}}" : "}}");
  // Random branches are useless, and gates at exactly 1 would leave their backward out: a penalty that pulls every
  // gate.
  const std::string gated =
      "{objective: paper, gate_penalty: 1e9, lr: {from: 1e-2, to: 1e-2}, " + section.substr(1) + "}}";
  return RunConfig::from_yaml("model: {path: random}\nmixer: {kind: " + request.mixer +
                                  ", chunk: " + std::to_string(request.chunk) +
                                  "}\nbudget: {ratio: '3:1'}\n"
                                  "device: {kind: cuda, dtype: bfloat16, threads: 4, frozen_dtype: " +
                                  request.frozen_dtype + "}\ndata: {" + text + "}\nstages:\n  align: " + of_text +
                                  "\n  select: " + gated + "\n  distill: " + of_text + "\n",
                              "stages_gpu");
}

void run_stage(const Request& request, MorphableModel& model, StageContext& context) {
  if (request.stage == "align") {
    align(model, context);
  } else if (request.stage == "select") {
    select_gates(model, LayerBudget::of_layers(model.layer_count(), model.layer_count() / 4), context);
  } else if (request.stage == "distill") {
    Routes routes(model.layer_count(), Route::linear());
    for (int64_t l = 3; l < model.layer_count(); l += 4) routes[l] = Route::full();
    distill(model, model.hybrid(routes), routes, "every fourth", context);
  } else {
    throw std::invalid_argument("--stage is align, select or distill, not " + request.stage);
  }
}

nlohmann::json measured(const Request& request, Communicator& host) {
  const RunConfig config = config_of(request);
  RunDevice device(config.device, host, config.health.step);
  Mesh mesh(device.world(), {1, 1, 1});
  const ModelSpec spec = spec_of(request.shape);
  MorphableModel model = random_model(spec, {0, 1, at::kBFloat16, device.place()}, mesh, config.mixer);

  const Tokenizer tokenizer = Tokenizer::open(request.tokenizer);
  const Corpus corpus = Corpus::open(config.data, tokenizer, request.length + 1);
  const PasskeyTask passkeys(tokenizer);
  StepTimes times(request.steps, request.profile);
  StopSignal stop;
  Watchdog watchdog(config.health, device.world(), {host_name()}, MpiSession::abort);
  StageContext context{{config, corpus, passkeys, times, stop, watchdog}, mesh};
  run_stage(request, model, context);

  const auto index = device.place().index();
  const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(index);
  const double tokens = static_cast<double>(request.sequences * request.length);
  return {{"side", "flashmorph"},
          {"shape", request.shape},
          {"stage", request.stage},
          {"documents", !request.jsonl.empty() || !request.tokens.empty()},
          {"mixer", request.mixer},
          {"frozen_dtype", request.frozen_dtype},
          {"chunk", request.chunk},
          {"sequences", request.sequences},
          {"length", request.length},
          {"device", device.description()},
          {"seconds_a_step", times.median()},
          {"tokens_per_second", tokens / times.median()},
          {"peak_gib", static_cast<double>(stats.allocated_bytes[0].peak) / (1 << 30)},
          {"loss", times.loss()},
          {"steps", times.seconds()},
          {"launches", times.launches()},
          {"busy", request.profile ? times.busy() : 0.0},
          {"idle", times.idle()},
          {"kernels", times.kernels()}};
}

}  // namespace
}  // namespace flashmorph

int main(int argc, char** argv) {
  flashmorph::MpiSession mpi(&argc, &argv);
  flashmorph::Request request;
  CLI::App app("times a stage on one card");
  app.add_option("--shape", request.shape);
  app.add_option("--stage", request.stage);
  app.add_option("--jsonl", request.jsonl);
  app.add_option("--tokens", request.tokens);
  app.add_option("--tokenizer", request.tokenizer);
  app.add_option("--mixer", request.mixer);
  app.add_option("--frozen-dtype", request.frozen_dtype);
  app.add_option("--sequences", request.sequences);
  app.add_option("--length", request.length);
  app.add_option("--steps", request.steps);
  app.add_option("--chunk", request.chunk);
  app.add_flag("--profile", request.profile);
  CLI11_PARSE(app, argc, argv);
  try {
    const auto world = mpi.world();
    std::printf("%s\n", flashmorph::measured(request, *world).dump().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stages_gpu: %s\n", error.what());
    return 1;
  }
}
