#include <cstdio>
#include <exception>

#include "core/base/bad_input.h"
#include "distributed/communication/mpi_communicator.h"
#include "launcher/command_line.h"
#include "launcher/run.h"

namespace {

constexpr int kBadInput = 2;
constexpr int kFailed = 3;

// A command's work is this process's alone.
int work(const flashmorph::CommandWork& command) {
  try {
    return command();
  } catch (const flashmorph::BadInput& fault) {
    std::fprintf(stderr, "%s\n", fault.what());
    return kBadInput;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flashmorph-dist: %s\n", error.what());
    return kFailed;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const flashmorph::ParsedCommandLine parsed = flashmorph::parse_command_line(argc, argv);
  if (parsed.command) return work(parsed.command);

  flashmorph::MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  const bool leads = world->rank() == 0;
  try {
    if (!parsed.run) {
      if (leads) std::fputs(parsed.message.c_str(), parsed.exit_code == 0 ? stdout : stderr);
      return parsed.exit_code;
    }
    return flashmorph::run(*parsed.run, *world);
  } catch (const flashmorph::BadInput& fault) {  // the same on every rank
    if (leads) std::fprintf(stderr, "%s\n", fault.what());
    return kBadInput;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flashmorph-dist: rank %d of %d: %s\n", world->rank(), world->size(), error.what());
    flashmorph::MpiSession::abort(kFailed);
  }
}
