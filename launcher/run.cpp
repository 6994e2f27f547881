#include "launcher/run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/data/sample_stream.h"
#include "core/mixer/linear_branch.h"
#include "distributed/coordinator/coordinator.h"
#include "distributed/parallel/together.h"
#include "launcher/journal.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

constexpr int kStoppedEarly = 75;

at::ScalarType dtype_of(const DeviceSection& device) { return device.dtype == "float64" ? at::kDouble : at::kFloat; }

// Rank 0 reads the file, so that all ranks run the same config.
RunConfig shared_config(const CommandLine& line, Communicator& world) {
  std::string yaml;
  together(world, [&] {
    if (world.rank() == 0) yaml = RunConfig::from_file(line.config_file, line.set).to_yaml();
  });
  return RunConfig::from_yaml(world.broadcast_text(yaml, 0), line.config_file);
}

std::string hash_of_weights(const Checkpoint& checkpoint) {
  std::string hashes;
  for (const std::filesystem::path& file : checkpoint.files()) hashes += sha256_of_file(file);
  return sha256_of_bytes(hashes.data(), hashes.size());
}

// Tokens that the longest sequence of any stage asks of the text.
int64_t longest_sequence(const StagesSection& stages) {
  int64_t longest = std::max(stages.evaluate.perplexity_length, std::ranges::max(stages.evaluate.lengths));
  for (const TrainingSection* section :
       std::initializer_list<const TrainingSection*>{&stages.align, &stages.select, &stages.distill, &stages.finetune})
    longest = std::max(longest, std::ranges::max(section->data.lengths));
  return longest;
}

// Rules between a stage, the mesh and the model that no single section can check.
void check_stages(const RunConfig& config, const ModelSpec& spec, const MeshShape& mesh) {
  std::vector<Fault> faults;
  const auto check = [&](const char* stage, const TrainingSection& section) {
    const std::string key = std::string("stages.") + stage;
    if (section.tokens == 0) return;
    const int64_t longest = std::ranges::max(section.data.lengths);
    const int64_t micro = section.micro_batch_tokens == 0 ? longest : section.micro_batch_tokens;
    const int64_t micro_batches = section.batch_tokens / micro;
    if (micro_batches % mesh.data != 0)
      faults.push_back({key + ".batch_tokens", "makes " + std::to_string(micro_batches) + " micro-batches of " +
                                                   std::to_string(micro) + " tokens a step, which " +
                                                   std::to_string(mesh.data) +
                                                   " data ranks cannot share evenly; change batch_tokens, "
                                                   "micro_batch_tokens or parallel.tensor"});
    if (longest > spec.max_positions)
      faults.push_back({key + ".data.lengths", "asks for " + std::to_string(longest) + " tokens; the model's longest position is " +
                                                   std::to_string(spec.max_positions)});
  };
  check("align", config.stages.align);
  check("select", config.stages.select);
  check("distill", config.stages.distill);
  check("finetune", config.stages.finetune);
  for (const int64_t length : config.stages.evaluate.lengths)
    if (length > spec.max_positions)
      faults.push_back({"stages.evaluate.lengths", "asks for " + std::to_string(length) +
                                                       " tokens; the model's longest position is " +
                                                       std::to_string(spec.max_positions)});
  if (!faults.empty()) throw BadInput(faults);
}

// All that a run reads, checked, before anything is written.
struct Inputs {
  ModelSpec spec;
  std::optional<Checkpoint> checkpoint;
  std::optional<Tokenizer> tokenizer;
  std::optional<Corpus> corpus;
  std::optional<PasskeyTask> passkeys;
};

Inputs read_inputs(const RunConfig& config, const MeshShape& mesh) {
  Inputs inputs;
  inputs.spec = ModelSpec::open(config.model.path);
  config.budget.full_layers_of(inputs.spec.layers);
  inputs.spec.check_tensor_parallel(mesh.tensor);
  check_mixer(config.mixer);
  check_stages(config, inputs.spec, mesh);
  inputs.checkpoint = Checkpoint::open(config.model.path);
  const std::filesystem::path tokenizer_file = std::filesystem::path(config.model.path) / "tokenizer.json";
  inputs.tokenizer = Tokenizer::open(tokenizer_file);
  if (inputs.tokenizer->vocab_size() > inputs.spec.vocabulary)
    throw BadInput(tokenizer_file.string(), "has ids up to " + std::to_string(inputs.tokenizer->vocab_size() - 1) +
                                                ", the model's vocabulary ends at " +
                                                std::to_string(inputs.spec.vocabulary - 1));
  inputs.passkeys.emplace(*inputs.tokenizer);
  inputs.corpus = Corpus::from_text(config.data.text, *inputs.tokenizer, config.data.held_out,
                                    longest_sequence(config.stages) + 1);
  for (const auto& [stage, section] : std::initializer_list<std::pair<const char*, const TrainingSection*>>{
           {"align", &config.stages.align}, {"select", &config.stages.select}, {"distill", &config.stages.distill},
           {"finetune", &config.stages.finetune}})
    if (section->tokens > 0) SampleStream(*inputs.corpus, *inputs.passkeys, *section, config.run.seed, stage);
  const int64_t least = inputs.passkeys->least_length(config.stages.evaluate.passkeys, config.stages.evaluate.words);
  if (std::ranges::min(config.stages.evaluate.lengths) < least)
    throw BadInput("stages.evaluate.lengths", std::to_string(config.stages.evaluate.passkeys) + " passkeys of " +
                                                  std::to_string(config.stages.evaluate.words) + " words need " +
                                                  std::to_string(least) + " tokens");
  return inputs;
}

}  // namespace

int run(const CommandLine& line, Communicator& world) {
  const bool leads = world.rank() == 0;
  const RunConfig config = shared_config(line, world);
  at::set_num_threads(static_cast<int>(config.device.threads));
  const MeshShape shape = MeshShape::of(world.size(), config.parallel.tensor);
  Mesh mesh(world, shape);
  StopSignal stop;

  Inputs inputs;
  std::optional<MorphableModel> model;
  RunFolder folder(config);
  std::string source_hash;
  together(world, [&] {
    inputs = read_inputs(config, shape);
    const Placement placement{mesh.tensor_rank(), shape.tensor, dtype_of(config.device), at::kCPU};
    model = MorphableModel::load(*inputs.checkpoint, inputs.spec, placement, mesh.shard());
    if (!leads) return;
    source_hash = hash_of_weights(*inputs.checkpoint);
    if (!line.fresh) folder.check(config, source_hash);
  });

  Terminal terminal(stdout);
  StageObserver silent;
  std::unique_ptr<Journal> journal;
  std::unique_ptr<Observers> observers;
  together(world, [&] {
    if (!leads) return;
    const std::filesystem::path aside = line.fresh ? folder.move_aside() : std::filesystem::path();
    folder.open(config, source_hash);
    journal = std::make_unique<Journal>(folder);
    observers = std::make_unique<Observers>(std::vector<StageObserver*>{&terminal, journal.get()});
    terminal.header(config, inputs.spec, shape, line.config_file, folder.path().string());
    if (!aside.empty()) observers->warn("the old run was moved to " + aside.string());
    journal->event("started", mesh.rank_map());
  });

  StageObserver& observer = leads ? static_cast<StageObserver&>(*observers) : silent;
  Coordinator coordinator({config, mesh, *inputs.corpus, *inputs.passkeys, observer, stop}, *model, folder);
  try {
    coordinator.run();
  } catch (const Stopped& stopped) {
    if (leads)
      observers->warn(std::string(stopped.what()) +
                      "; finished stages are kept, the same command goes on with the stage it was in");
    return kStoppedEarly;
  }
  if (leads) {
    terminal.closing(coordinator.plans(), coordinator.evaluation(),
                     config.stages.export_.enabled ? folder.export_folder().string() : "");
    journal->event("finished", "");
  }
  return 0;
}

}  // namespace flashmorph
