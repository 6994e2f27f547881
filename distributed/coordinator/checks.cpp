#include "distributed/coordinator/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/config/values.h"
#include "core/export/export_format.h"
#include "core/io/safetensors.h"
#include "core/mixer/linear_branch.h"
#include "core/select/selector.h"
#include "distributed/parallel/stage_layouts.h"

namespace flashmorph {

void check_settings(const RunConfig& config, const ModelSpec& spec, int64_t ranks) {
  check_mixer(config.mixer);
  check_methods(config.stages);
  if (config.budget.milliseconds == 0.0)
    check_methods(config.stages,
                  layer_budget(config.budget, spec, static_cast<int64_t>(c10::elementSize(dtype_of(config.device)))));
  if (config.stages.export_.enabled) export_format(config.stages.export_.format, spec, config.mixer);  // or refused

  std::vector<Fault> faults;
  const auto layout = [&](const char* stage) -> std::optional<Layout> {
    try {
      return layout_of(stage, config, spec, ranks);
    } catch (const BadInput& bad) {
      for (const Fault& fault : bad.faults())  // a mesh that many stages share is at fault once
        if (std::ranges::none_of(
                faults, [&](const Fault& known) { return known.where == fault.where && known.what == fault.what; }))
          faults.push_back(fault);
      return std::nullopt;
    }
  };
  const auto check_length = [&](const std::string& key, int64_t tokens) {
    if (tokens > spec.max_positions)
      faults.push_back(
          {key, fmt::format("asks for {} tokens; the model's longest position is {}", tokens, spec.max_positions)});
  };
  for (const auto& [stage, section] : config.stages.training()) {
    if (section->tokens == 0) continue;
    const std::string key = std::string("stages.") + stage;
    const std::optional<Layout> here = layout(stage);
    const int64_t micro = section->micro_batch(), micro_batches = section->batch_tokens / micro;
    if (here && micro_batches % here->shape.data != 0)
      faults.push_back({key + ".batch_tokens",
                        fmt::format("makes {} micro-batches of {} tokens a step, which {} data ranks cannot share "
                                    "evenly; change batch_tokens, micro_batch_tokens, parallel.tensor or "
                                    "parallel.pipeline",
                                    micro_batches, micro, here->shape.data)});
    for (const int64_t tokens : section->data.lengths)
      if (here && here->shape.sequence && tokens % here->shape.tensor != 0)
        faults.push_back(
            {key + ".data.lengths", fmt::format("asks for {} tokens, which {} tensor ranks cannot share evenly; change "
                                                "it or parallel.sequence",
                                                tokens, here->shape.tensor)});
    check_length(key + ".data.lengths", section->longest());
  }
  const EvaluateSection& evaluate = config.stages.evaluate;
  layout("evaluate");
  for (const int64_t length : evaluate.lengths) check_length("stages.evaluate.lengths", length);
  if (!evaluate.tasks.empty())
    for (const int64_t length : evaluate.task_lengths) check_length("stages.evaluate.task_lengths", length);
  if (!faults.empty()) throw BadInput(faults);
}

std::map<std::string, std::string> branch_facts(const RunConfig& config, const std::string& teacher) {
  std::map<std::string, std::string> facts = {{"teacher", teacher}};
  for (const auto& [key, value, rule] : values_of(config))
    if (key.starts_with("mixer.") && key != "mixer.init" && rule.changes_results) facts[key] = value;
  return facts;
}

void check_branches(const RunConfig& config, const std::string& teacher) {
  const std::string& file = config.stages.align.branches;
  if (file.empty()) return;
  const auto stored = SafetensorsFile::open(file);
  for (const auto& [key, expected] : branch_facts(config, teacher)) {
    const auto found = stored->metadata().find(key);
    if (found == stored->metadata().end())
      throw BadInput(file, "does not say its " + key + ": stages.align.branches takes branches.safetensors of a run");
    if (found->second != expected)
      throw BadInput(file, "holds branches whose " + key + " is " + found->second + ", expected " + expected +
                               ", as stages.align.branches goes on with the same teacher and mixer");
  }
}

}  // namespace flashmorph
