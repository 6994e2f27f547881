#include "launcher/commands.h"

namespace flashmorph {

RanksWork bench_command(CLI::App& app);
RanksWork evaluate_command(CLI::App& app);
CommandWork inspect_command(CLI::App& app);
CommandWork pick_command(CLI::App& app);
CommandWork plan_command(CLI::App& app);
CommandWork report_command(CLI::App& app);
CommandWork status_command(CLI::App& app);
CommandWork tokenize_command(CLI::App& app);

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"inspect", "describe a checkpoint or an export: layers, parameters, memory a token", inspect_command},
      {"evaluate", "measure models side by side: long-context tasks, perplexity by place, multiple choice", nullptr,
       evaluate_command},
      {"bench", "time models side by side: reading a prompt, writing tokens, memory of a sequence", nullptr,
       bench_command},
      {"plan", "say what a run would take on so many ranks, or why it cannot run; runs nothing", plan_command},
      {"status", "say where a run is: stages, gates, pace, time left", status_command},
      {"pick", "the layers that a run's gates keep within another budget; trains nothing", pick_command},
      {"report", "write a run's report.html again, from what is on disk", report_command},
      {"tokenize", "write texts as tokens that runs map: .bin and .idx as Megatron's, and .json", tokenize_command},
  };
  return all;
}

}  // namespace flashmorph
