#pragma once

#include <optional>
#include <string>
#include <vector>

namespace flashmorph {

struct CommandLine {
  std::string config_file;
  std::vector<std::string> set;  // "key.path=value"
  bool fresh = false;            // move an old run of this name aside and start anew
};

// What the arguments ask for, or what to print and the exit code when they ask for nothing to run (help, version, an error).
struct ParsedCommandLine {
  std::optional<CommandLine> run;
  std::string message;
  int exit_code = 0;
};

ParsedCommandLine parse_command_line(int argc, char** argv);

}  // namespace flashmorph
