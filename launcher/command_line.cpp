#include "launcher/command_line.h"

#include <CLI/CLI.hpp>

#include "core/config/run_config.h"

namespace flashmorph {

ParsedCommandLine parse_command_line(int argc, char** argv) {
  CommandLine line;
  CLI::App app("Turns a pretrained Transformer into a hybrid-attention model: full attention where a budget of layers\n"
               "needs it most, linear attention in the rest (FlashMorph).",
               "flashmorph-dist");
  app.add_option("config", line.config_file, "the run, as YAML; docs/yaml.md lists every key")->required();
  app.add_option("--set", line.set, "override a key, e.g. --set budget.full_layers=4 (may be repeated)")
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->take_all();
  bool resume = false;
  auto* fresh = app.add_flag("--fresh", line.fresh, "move an old run of this name aside and start anew");
  app.add_flag("--resume", resume, "go on where the run folder is (what happens anyway)")->excludes(fresh);
  app.add_flag_callback("--keys", [] { throw CLI::Success(); }, "list every key of the YAML, with defaults and meanings");
  app.set_version_flag("--version", "flashmorph-dist " FLASHMORPH_VERSION);
  app.footer("Examples:\n"
             "  mpirun -np 4 flashmorph-dist configs/quickstart.yaml\n"
             "  mpirun -np 2 flashmorph-dist run.yaml --set parallel.tensor=1 --set run.name=two-ranks\n"
             "  flashmorph-dist run.yaml --fresh          one rank, the old run moved aside\n\n"
             "Exit codes: 0 done, 2 bad input, 3 a rank failed, 75 stopped early (the same command goes on).");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    if (asked.get_name() == "Success") return {std::nullopt, yaml_reference(), 0};
    std::ostringstream out;
    app.exit(asked, out, out);
    return {std::nullopt, out.str(), 0};
  } catch (const CLI::ParseError& stop) {
    std::ostringstream out, errors;
    const int code = app.exit(stop, out, errors);
    return {std::nullopt, out.str() + errors.str(), code == 0 ? 0 : 2};
  }
  return {line, "", 0};
}

}  // namespace flashmorph
