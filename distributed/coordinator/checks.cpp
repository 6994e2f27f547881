#include "distributed/coordinator/checks.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/export/export_format.h"
#include "core/mixer/linear_branch.h"
#include "core/select/selector.h"
#include "distributed/parallel/stage_layouts.h"

namespace flashmorph {
namespace {

// The faults of one config so far.
class Checks {
 public:
  Checks(const RunConfig& config, const ModelSpec& spec, int64_t ranks) : config_(config), spec_(spec), ranks_(ranks) {}

  std::optional<Layout> layout(const char* stage) {
    try {
      return layout_of(stage, config_, spec_, ranks_);
    } catch (const BadInput& bad) {
      for (const Fault& fault : bad.faults())
        if (!is_known(fault)) faults.push_back(fault);
      return std::nullopt;
    }
  }

  void training(const char* stage, const TrainingSection& section) {
    if (section.tokens == 0) return;
    const std::string key = std::string("stages.") + stage;
    const std::optional<Layout> here = layout(stage);
    const int64_t micro = section.micro_batch(), micro_batches = section.batch_tokens / micro;
    if (here && micro_batches % here->shape.data != 0)
      faults.push_back({key + ".batch_tokens", "makes " + std::to_string(micro_batches) + " micro-batches of " +
                                                   std::to_string(micro) + " tokens a step, which " +
                                                   std::to_string(here->shape.data) +
                                                   " data ranks cannot share evenly; change batch_tokens, "
                                                   "micro_batch_tokens, parallel.tensor or parallel.pipeline"});
    for (const int64_t tokens : section.data.lengths)
      if (here && here->shape.sequence && tokens % here->shape.tensor != 0)
        faults.push_back(
            {key + ".data.lengths", "asks for " + std::to_string(tokens) + " tokens, which " +
                                        std::to_string(here->shape.tensor) +
                                        " tensor ranks cannot share evenly; change it or parallel.sequence"});
    length(key + ".data.lengths", section.longest());
  }

  void length(const std::string& key, int64_t tokens) {
    if (tokens > spec_.max_positions)
      faults.push_back({key, "asks for " + std::to_string(tokens) + " tokens; the model's longest position is " +
                                 std::to_string(spec_.max_positions)});
  }

  std::vector<Fault> faults;

 private:
  // A mesh that many stages share is at fault once.
  bool is_known(const Fault& fault) const {
    return std::ranges::any_of(
        faults, [&](const Fault& known) { return known.where == fault.where && known.what == fault.what; });
  }

  const RunConfig& config_;
  const ModelSpec& spec_;
  int64_t ranks_;
};

}  // namespace

void check_settings(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  check_mixer(config.mixer);
  check_methods(config.stages);
  if (config.budget.milliseconds == 0.0)
    check_methods(config.stages,
                  layer_budget(config.budget, spec, static_cast<int64_t>(c10::elementSize(dtype_of(config.device)))));
  if (config.stages.export_.enabled) export_format(config.stages.export_.format, spec, config.mixer);  // or refused
  Checks checks(config, spec, ranks);
  for (const auto& [stage, section] : config.stages.training()) checks.training(stage, *section);
  checks.layout("evaluate");
  for (const int64_t length : config.stages.evaluate.lengths) checks.length("stages.evaluate.lengths", length);
  if (!config.stages.evaluate.tasks.empty())
    for (const int64_t length : config.stages.evaluate.task_lengths)
      checks.length("stages.evaluate.task_lengths", length);
  if (!checks.faults.empty()) throw BadInput(checks.faults);
}

}  // namespace flashmorph
