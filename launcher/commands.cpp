#include "launcher/commands.h"

namespace flashmorph {

CommandWork inspect_command(CLI::App& app);
CommandWork tokenize_command(CLI::App& app);

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"inspect", "describe a checkpoint or an export: layers, parameters, memory a token", inspect_command},
      {"tokenize", "write texts as tokens that runs map: .bin and .idx as Megatron's, and .json", tokenize_command},
  };
  return all;
}

}  // namespace flashmorph
