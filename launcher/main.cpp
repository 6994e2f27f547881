#include <malloc.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "core/base/bad_input.h"
#include "core/base/endings.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/parallel/on_all_ranks.h"
#include "launcher/command_line.h"
#include "launcher/run.h"
#include "launcher/start_checks.h"

namespace {

// A command's work is this process's alone.
int work(const flashmorph::CommandWork& command) {
  try {
    return command();
  } catch (const flashmorph::BadInput& fault) {
    std::fprintf(stderr, "%s\n", fault.what());
    return flashmorph::kBadInput;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flashmorph-dist: %s\n", error.what());
    return flashmorph::kFailed;
  }
}

// Tensors of some megabytes come and go at every step: what they leave is kept for the next ones, where the allocator
// would return it to the system and get it back page by page, a fifth of a step's time.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  const flashmorph::ParsedCommandLine parsed = flashmorph::parse_command_line(argc, argv);
  if (parsed.command) return work(parsed.command);

  if (std::getenv("HOME") == nullptr) {  // Open MPI would end the process itself, with other words
    std::fputs("HOME: is not set, which Open MPI needs; set it to a folder, for example HOME=/tmp\n", stderr);
    return flashmorph::kBadInput;
  }
  flashmorph::MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  const bool leads = world->rank() == 0 && (world->size() > 1 || flashmorph::is_first_process(std::getenv));
  try {
    if (!parsed.run && !parsed.on_ranks) {
      if (leads) std::fputs(parsed.message.c_str(), parsed.exit_code == 0 ? stdout : stderr);
      return parsed.exit_code;
    }
    flashmorph::check_ranks_found_each_other(world->size(), std::getenv);
    return parsed.run ? flashmorph::run(*parsed.run, *world) : parsed.on_ranks(*world);
  } catch (const flashmorph::BadInput& fault) {  // the same on every rank
    if (leads) std::fprintf(stderr, "%s\n", fault.what());
    return flashmorph::kBadInput;
  } catch (const flashmorph::Stopped& stopped) {  // as well
    if (leads) std::fprintf(stderr, "%s\n", stopped.what());
    return flashmorph::kStoppedEarly;
  } catch (const flashmorph::CommonFailure& failure) {  // as well
    if (leads) std::fprintf(stderr, "flashmorph-dist: %s\n", failure.what());
    return flashmorph::kFailed;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flashmorph-dist: rank %d of %d: %s\n", world->rank(), world->size(), error.what());
    flashmorph::MpiSession::abort(flashmorph::kFailed);
  }
}
