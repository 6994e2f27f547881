#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/commands.h"

namespace flashmorph {

struct CommandLine {
  std::string config_file;
  std::vector<std::string> set;  // "key.path=value"
  bool fresh = false;            // move an old run of this name aside and start anew
};

// What the arguments ask for: a run or a command's work over the ranks, a command's work on this process, or a message
// and an exit code (help, version, an error).
struct ParsedCommandLine {
  std::optional<CommandLine> run = std::nullopt;
  CommandWork command = nullptr;
  RanksWork on_ranks = nullptr;
  std::string message = "";
  int exit_code = 0;
};

ParsedCommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace flashmorph
