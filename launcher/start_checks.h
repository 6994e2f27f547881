#pragma once

#include <functional>
#include <string>

#include "distributed/communication/communicator.h"
#include "launcher/command_line.h"

namespace flashmorph {

// Reads one variable of the environment; nullptr when it is not set.
using Environment = std::function<const char*(const char* name)>;

// BadInput when a launcher started several processes (its variables say so) that MPI did not bring together: each would
// run the whole job as rank 0 of 1.
void check_ranks_found_each_other(int world_size, const Environment& environment);

// Whether this process speaks for the run before its ranks have found each other: the launcher's first one.
bool is_first_process(const Environment& environment);

// What must be the same on every rank, in words.
struct StartFacts {
  std::string program;      // version and build
  std::string arguments;    // the config's path and --set
  std::string config_hash;  // of the file; empty when this rank cannot read it: only rank 0 must
};
StartFacts start_facts(const CommandLine& line);

// BadInput on every rank, naming the first that differs from rank 0 and in what.
void check_same_start(const StartFacts& facts, Communicator& world);

}  // namespace flashmorph
