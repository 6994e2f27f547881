#include "launcher/start_checks.h"

#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {

void check_ranks_found_each_other(int world_size, const Environment& environment) {
  // The launcher nearest to this process says it first: mpirun inside a Slurm allocation may well start one rank.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}) {
    const char* value = environment(name);
    if (value == nullptr) continue;
    if (world_size == 1 && std::atoll(value) > 1)
      throw BadInput(
          name, fmt::format("is {0}, but this process is alone in MPI: every one would run the whole job as rank 0 "
                            "of 1. Start the ranks with mpirun -np {0} flashmorph-dist ..., or with srun "
                            "--mpi=pmix where Slurm and this Open MPI share PMIx",
                            value));
    return;
  }
}

bool is_first_process(const Environment& environment) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* value = environment(name); value != nullptr) return std::atoll(value) == 0;
  return true;
}

StartFacts start_facts(const CommandLine& line) {
  StartFacts facts;
  facts.program = fmt::format("{} (build {:.12})", FLASHMORPH_VERSION, sha256_of_file("/proc/self/exe"));
  facts.arguments = line.config_file;
  for (const std::string& set : line.set) facts.arguments += " --set " + set;
  if (std::ifstream(line.config_file)) facts.config_hash = sha256_of_file(line.config_file);
  return facts;
}

void check_same_start(const StartFacts& facts, Communicator& world) {
  const nlohmann::json mine = {facts.program, facts.arguments, facts.config_hash};
  const auto replacing = nlohmann::json::error_handler_t::replace;  // a file's name need not be UTF-8
  const std::vector<std::string> all = gather_text(mine.dump(-1, ' ', false, replacing), world);
  const nlohmann::json first = nlohmann::json::parse(all[0]);
  constexpr std::pair<const char*, const char*> kWhat[] = {{"flashmorph-dist", "the program"},
                                                           {"command line", "the config and overrides"},
                                                           {"config file", "a file of SHA-256"}};
  for (int rank = 1; rank < world.size(); ++rank) {
    const nlohmann::json theirs = nlohmann::json::parse(all[rank]);
    for (size_t fact = 0; fact < std::size(kWhat); ++fact) {
      if (theirs[fact] == first[fact] || theirs[fact] == "" || first[fact] == "") continue;
      throw BadInput(kWhat[fact].first,
                     fmt::format("rank {} has {} {}, expected that of rank 0, {}", rank, kWhat[fact].second,
                                 theirs[fact].get<std::string>(), first[fact].get<std::string>()));
    }
  }
}

}  // namespace flashmorph
