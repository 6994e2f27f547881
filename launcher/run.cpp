#include "launcher/run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/base/clock.h"
#include "core/base/endings.h"
#include "core/base/host_name.h"
#include "core/data/sample_stream.h"
#include "core/model/stored_model.h"
#include "core/tasks/plays.h"
#include "core/tasks/task.h"
#include "distributed/coordinator/checks.h"
#include "distributed/coordinator/coordinator.h"
#include "distributed/health/sniff.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/run/run_lock.h"
#include "launcher/cost.h"
#include "launcher/device.h"
#include "launcher/journal.h"
#include "launcher/metrics.h"
#include "launcher/report.h"
#include "launcher/start_checks.h"
#include "launcher/start_times.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

// Rank 0 reads the file, so that all ranks run the same config. No tensor is made before it is known to be sound: a
// device's library must be opened first.
RunConfig shared_config(const CommandLine& line, Communicator& world) {
  std::string yaml;
  std::optional<BadInput> fault;
  if (world.rank() == 0) {
    try {
      yaml = RunConfig::from_file(line.config_file, line.set).to_yaml();
    } catch (const BadInput& found) {
      fault = found;
    }
  }
  yaml = world.broadcast_text(yaml, 0);
  if (!yaml.empty()) return RunConfig::from_yaml(yaml, line.config_file);
  on_all_ranks(world, [&] {
    if (fault) throw *fault;
  });
  throw std::logic_error("an empty config without a fault");
}

// Called between the parts of what is read: a large model and a large text take their time.
std::function<void()> stop_loading_if_asked(const StopSignal& stop) {
  return [&stop] {
    if (const StopReason reason = stop.here(); reason != StopReason::none)
      throw Stopped(std::string("stopped while loading: ") + text_of(reason));
  };
}

// Tokens that the longest sequence of any stage asks of the text.
int64_t longest_sequence(const StagesSection& stages) {
  int64_t longest = std::max(stages.evaluate.perplexity_length, std::ranges::max(stages.evaluate.lengths));
  for (const auto& [stage, section] : stages.training()) longest = std::max(longest, section->longest());
  return longest;
}

// All that a run reads, checked, before anything is written.
struct Inputs {
  ModelSpec spec;
  std::optional<ModelFiles> files;
  std::vector<std::string> notes;  // on what is stored
  std::optional<Tokenizer> tokenizer;
  std::optional<Corpus> corpus;
  std::optional<PasskeyTask> passkeys;
  std::optional<TaskMaterial> tasks;  // where evaluate asks any
};

Inputs read_inputs(const RunConfig& config, int64_t ranks, const std::function<void()>& between_reads) {
  Inputs inputs;
  StoredModel model = StoredModel::open(config.model.path);
  inputs.spec = model.spec;
  check_settings(config, inputs.spec, ranks);
  inputs.files = std::move(model.weights);
  inputs.notes = std::move(model.notes);
  inputs.files->before_each_read(between_reads);
  inputs.tokenizer = Tokenizer::of_model(config.model.path, inputs.spec.vocabulary);
  inputs.passkeys.emplace(*inputs.tokenizer);
  inputs.corpus = Corpus::open(config.data, *inputs.tokenizer, longest_sequence(config.stages) + 1, between_reads);
  for (const auto& [stage, section] : config.stages.training())
    if (section->tokens > 0) SampleStream(*inputs.corpus, *inputs.passkeys, *section, config.run.seed, stage);
  const int64_t least = inputs.passkeys->least_length(config.stages.evaluate.passkeys, config.stages.evaluate.words);
  if (std::ranges::min(config.stages.evaluate.lengths) < least)
    throw BadInput("stages.evaluate.lengths",
                   fmt::format("{} passkeys of {} words need {} tokens", config.stages.evaluate.passkeys,
                               config.stages.evaluate.words, least));
  const EvaluateSection& evaluate = config.stages.evaluate;
  if (!evaluate.tasks.empty()) inputs.tasks.emplace(*inputs.tokenizer, plays());
  for (const std::string& task : evaluate.tasks)
    for (const int64_t length : evaluate.task_lengths)  // one that is too short is refused
      task_sample(task_named(task, "stages.evaluate.tasks"), *inputs.tasks, 0, length, 0);
  return inputs;
}

// Every stage of the run with its layout.
StageLayouts layouts_of(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  StageLayouts layouts;
  for (const char* stage : kStagesOnMeshes) layouts.emplace_back(stage, layout_of(stage, config, spec, ranks));
  return layouts;
}

// The run's folder, for this start alone. With `fresh` an old run is moved aside first, unless it is still under way;
// `aside` says where to.
std::unique_ptr<RunLock> locked(const RunFolder& folder, bool fresh, std::filesystem::path& aside) {
  if (fresh && std::filesystem::exists(folder.path())) {
    RunLock old(folder.path());
    aside = folder.move_aside();
    old.folder_moved(aside);
  }
  return std::make_unique<RunLock>(folder.path());
}

// A rank or link that is slow costs all others: named before it does.
void sniff(RunDevice& device, const std::vector<std::string>& hosts, const RunConfig& config, Watchdog& watchdog,
           StageObserver& observer) {
  const Phase measuring(watchdog, Work::evaluate, "sniff");
  const Stopwatch watch;
  Communicator& world = device.world();
  const std::vector<Rates> ranks = gather_rates(measured_rates(world, device.place(), dtype_of(config.device)), world);
  observer.note(fmt::format("sniff  {}  took {:.1f} s", text_of(ranks), watch.seconds()));
  for (const std::string& odd : odd_rates(ranks, hosts)) observer.warn(odd);
}

}  // namespace

int run(const CommandLine& line, Communicator& host_world) {
  StartTimes times;
  const bool leads = host_world.rank() == 0;
  const RunConfig config = shared_config(line, host_world);
  times.done("MPI and config");
  StopSignal stop(config.run.time_limit, slurm_end_time());
  const std::function<void()> between_reads = stop_loading_if_asked(stop);
  RunSourcesAhead sources_ahead(config, host_world, between_reads);
  RunDevice device(config.device, host_world, config.health.step);  // no tensor before it
  times.done("device");
  check_same_start(start_facts(line), host_world);
  Communicator& world = device.world();
  at::set_num_threads(static_cast<int>(config.device.threads));
  const std::vector<std::string> hosts = gather_text(host_name(), world);
  Watchdog watchdog(config.health, world, hosts, std::_Exit);
  const Phase between_others(watchdog, Work::load, "load");

  Inputs inputs;
  RunFolder folder(config);
  std::unique_ptr<Metrics> metrics;
  on_all_ranks(world, [&] { inputs = read_inputs(config, world.size(), between_reads); });
  times.done("inputs");
  on_all_ranks(world, [&] {
    if (!leads) return;
    if (!line.fresh) folder.check(config);
    if (config.metrics.enabled()) metrics = std::make_unique<Metrics>(config, FLASHMORPH_VERSION);
  });
  PlacedModel placed(world, config, inputs.spec, *inputs.files, dtype_of(config.device), device.place());
  const Layout layout = layout_of("align", config, inputs.spec, world.size());
  placed.place(layout);  // weights that cannot be read are refused here
  times.done("weights");
  const RunSources sources = sources_ahead.agreed(world);
  times.done("hashes");
  on_all_ranks(world, [&] {
    if (!leads) return;
    check_branches(config, sources.teacher);
    if (!line.fresh) folder.check(config, sources);
  });
  if (!config.stages.align.branches.empty()) placed.start_branches();  // and so are branches
  const proto::LayerLatency latency = [&] {
    const Phase measuring(watchdog, Work::evaluate, "latency");
    return latency_of_run(config, placed, folder, line.fresh, world);
  }();

  Terminal terminal(stdout);
  StageObserver silent;
  std::unique_ptr<RunLock> lock;
  std::unique_ptr<Journal> journal;
  std::unique_ptr<CostRecorder> costs;
  std::unique_ptr<Observers> observers;
  on_all_ranks(world, [&] {
    if (!leads) return;
    std::filesystem::path aside;
    lock = locked(folder, line.fresh, aside);
    const std::vector<ChangedKey> changes = folder.changes(config);
    folder.open(config, sources);
    journal = std::make_unique<Journal>(folder);
    costs = std::make_unique<CostRecorder>(folder.path(), *journal, metrics.get());
    std::vector<StageObserver*> all = {&terminal, journal.get(), costs.get()};
    if (metrics) {
      all.push_back(metrics.get());
      metrics->write_target(folder.metrics_target_file());
      journal->event("metrics", fmt::format("http://{}/metrics", metrics->address()));
    }
    observers = std::make_unique<Observers>(all);
    terminal.header(config, inputs.spec, layouts_of(config, inputs.spec, world.size()), device.description(),
                    line.config_file, folder.path().string());
    if (!aside.empty()) observers->warn("the old run was moved to " + aside.string());
    if (!lock->taken_over().empty()) observers->warn(lock->taken_over());
    for (const std::string& note : inputs.notes) observers->warn(note);
    if (!changes.empty()) observers->note("other than at the last start: " + text_of(changes));
    journal->event("device", device.description());
    journal->event("started", rank_map(layout.shape, layout.layers));
    times.done("the rest");
    journal->event("ready", times.text());
  });

  watchdog.meet_in(folder.health_folder());

  StageObserver& observer = leads ? static_cast<StageObserver&>(*observers) : silent;
  if (config.health.sniff) sniff(device, hosts, config, watchdog, observer);
  RunUnderWay under_way{
      {config, *inputs.corpus, *inputs.passkeys, observer, stop, watchdog, inputs.tasks ? &*inputs.tasks : nullptr},
      latency,
      world,
      placed,
      folder};
  try {
    run_stages(under_way);
  } catch (const Stopped& stopped) {
    if (leads) {
      std::filesystem::remove(folder.metrics_target_file());
      observers->warn(fmt::format("{}; the same command goes on from there", stopped.what()));
    }
    return kStoppedEarly;
  } catch (const BadInput&) {
    throw;
  } catch (const CommonFailure&) {
    throw;
  } catch (const std::exception& error) {  // the other ranks know nothing of it
    watchdog.give_up(error);
  }
  if (leads) {
    std::filesystem::remove(folder.metrics_target_file());
    journal->event("finished", "");
    const std::filesystem::path report = write_report(folder.path());
    terminal.closing(under_way.plans, under_way.evaluation,
                     config.stages.export_.enabled ? folder.export_folder().string() : "", report.string());
  }
  return 0;
}

}  // namespace flashmorph
