#include <ATen/ATen.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "core/base/host_name.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/health/watchdog.h"
#include "distributed/parallel/on_all_ranks.h"

// Ranks that take five steps together, a collective each; in the third one, which alone has a deadline that passes, the
// last rank does what it is told to.
//   misbehave FOLDER|- nothing|late|stopped|dies|throws|diverges

using namespace flashmorph;

namespace {

void misbehave(const std::string& how, Communicator& group) {
  if (how == "late")
    for (;;) pause();
  if (how == "stopped") std::raise(SIGSTOP);
  if (how == "dies") std::raise(SIGKILL);
  if (how == "throws") throw std::runtime_error("a card fell off");
  if (how == "diverges") group.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const std::string folder = argv[1], how = argv[2];
  MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  const auto group = world->split(0, world->rank(), "data");
  const bool hangs = how == "late" || how == "stopped" || how == "diverges";
  Watchdog watchdog({.step = hangs ? 5.0 : HealthSection().step}, *world, gather_text(host_name(), *world), std::_Exit);
  if (folder != "-") watchdog.meet_in(folder);
  try {
    for (int64_t step = 1; step <= 5; ++step) {
      const Phase phase(watchdog, step == 3 ? Work::step : Work::evaluate, "align", step);
      if (step == 3 && world->rank() == world->size() - 1) misbehave(how, *group);
      at::Tensor values = at::zeros({3, 5});
      group->all_reduce(values, Reduction::sum);
    }
  } catch (const std::exception& error) {
    watchdog.give_up(error.what());
  }
  return 0;
}
