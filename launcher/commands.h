#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace flashmorph {

// What to do once the arguments are known, on this process alone, without MPI; returns the exit code. May throw
// BadInput.
using CommandWork = std::function<int()>;

// --set KEY=VALUE, as often as it takes: overrides of a config's keys.
CLI::Option* add_set_option(CLI::App& app, std::vector<std::string>& set);

// A word after the program's name with options of its own: flashmorph-dist inspect DIR.
struct Command {
  const char* name;
  const char* summary;
  CommandWork (*define)(CLI::App& app);  // adds its options to `app`; the work keeps them alive
};

// In the order of --help. A new command is a file launcher/NAME.cpp and its mention in commands.cpp.
const std::vector<Command>& commands();

}  // namespace flashmorph
