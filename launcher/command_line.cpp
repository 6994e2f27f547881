#include "launcher/command_line.h"

#include <CLI/CLI.hpp>

#include "core/base/endings.h"
#include "core/config/run_config.h"

namespace flashmorph {
namespace {

constexpr const char* kSummary =
    "Turns a pretrained Transformer into a hybrid-attention model: full attention where a budget of layers\n"
    "needs it most, linear attention in the rest (FlashMorph).";
constexpr const char* kFooter =
    "Examples:\n"
    "  mpirun -np 4 flashmorph-dist configs/quickstart.yaml\n"
    "  mpirun -np 2 flashmorph-dist run.yaml --set parallel.tensor=1 --set run.name=two-ranks\n"
    "  flashmorph-dist run.yaml --fresh          one rank, the old run moved aside\n"
    "  flashmorph-dist plan run.yaml --np 64 --card h100\n"
    "  flashmorph-dist inspect DIR               what a model folder holds\n"
    "  mpirun -np 2 flashmorph-dist evaluate TEACHER EXPORT --lengths 1024,4096\n\n"
    "Exit codes: 0 done, 2 bad input, 3 a rank failed, 4 a rank hung, 75 stopped early (the same command goes on).";

// The options of a run, which is what the program does without a command.
std::vector<CLI::Option*> add_run_options(CLI::App& app, CommandLine& line) {
  CLI::Option* config = app.add_option("config", line.config_file, "the run, as YAML; docs/yaml.md lists every key");
  CLI::Option* set = add_set_option(app, line.set);
  CLI::Option* fresh = app.add_flag("--fresh", line.fresh, "move an old run of this name aside and start anew");
  CLI::Option* resume = app.add_flag_callback(
                               "--resume", [] {}, "go on where the run folder is (what happens anyway)")
                            ->excludes(fresh);
  return {config, set, fresh, resume};
}

// Adds every command; `chosen` gets the work of the one that is named.
void add_commands(CLI::App& app, const std::vector<CLI::Option*>& run_options, ParsedCommandLine& chosen) {
  app.require_subcommand(0, 1);
  for (const Command& command : commands()) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    for (CLI::Option* option : run_options) sub->excludes(option);
    if (command.define != nullptr)
      sub->callback([work = command.define(*sub), &chosen] { chosen.command = work; });
    else
      sub->callback([work = command.define_on_ranks(*sub), &chosen] { chosen.on_ranks = work; });
  }
}

}  // namespace

CLI::Option* add_set_option(CLI::App& app, std::vector<std::string>& set) {
  return app.add_option("--set", set, "override a key, e.g. --set budget.full_layers=4 (may be repeated)")
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->take_all();
}

ParsedCommandLine parse_command_line(int argc, const char* const* argv) {
  CommandLine line;
  ParsedCommandLine chosen;
  CLI::App app(kSummary, "flashmorph-dist");
  const std::vector<CLI::Option*> run_options = add_run_options(app, line);
  add_commands(app, run_options, chosen);
  app.add_flag_callback(
      "--keys", [] { throw CLI::Success(); }, "list every key of the YAML, with defaults and meanings");
  app.set_version_flag("--version", "flashmorph-dist " FLASHMORPH_VERSION);
  app.footer(kFooter);
  try {
    app.parse(argc, argv);
    if (!chosen.command && !chosen.on_ranks && line.config_file.empty()) throw CLI::RequiredError("config");
  } catch (const CLI::Success& asked) {
    if (asked.get_name() == "Success") return {.message = yaml_reference()};
    std::ostringstream out;
    app.exit(asked, out, out);
    return {.message = out.str()};
  } catch (const CLI::ParseError& fault) {
    std::ostringstream out;
    app.exit(fault, out, out);
    return {.message = out.str(), .exit_code = kBadInput};
  }
  if (!chosen.command && !chosen.on_ranks) chosen.run = line;
  return chosen;
}

}  // namespace flashmorph
