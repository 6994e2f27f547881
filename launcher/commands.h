#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace flashmorph {

class Communicator;

// What to do once the arguments are known, on this process alone, without MPI; returns the exit code. May throw
// BadInput.
using CommandWork = std::function<int()>;
// The same on all ranks that were started together. What it throws is the same on every rank, or ends the job.
using RanksWork = std::function<int(Communicator& world)>;

// --set KEY=VALUE, as often as it takes: overrides of a config's keys.
CLI::Option* add_set_option(CLI::App& app, std::vector<std::string>& set);

// A word after the program's name with options of its own: flashmorph-dist inspect DIR.
struct Command {
  const char* name;
  const char* summary;
  // One of the two; it adds the command's options to `app`, and the work keeps them alive.
  CommandWork (*define)(CLI::App& app) = nullptr;
  RanksWork (*define_on_ranks)(CLI::App& app) = nullptr;
};

// In the order of --help. A new command is a file launcher/NAME.cpp and its mention in commands.cpp.
const std::vector<Command>& commands();

}  // namespace flashmorph
