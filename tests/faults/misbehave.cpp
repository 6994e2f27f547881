#include <ATen/ATen.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "core/base/host_name.h"
#include "distributed/communication/cuda_library.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/health/watchdog.h"
#include "distributed/parallel/on_all_ranks.h"

// Ranks that take five steps together, a collective each; in the third one, which alone has a deadline that passes, the
// last rank does what it is told to.
//   misbehave FOLDER|- nothing|late|stopped|dies|throws|diverges|no_memory [cards]
// With `cards` each rank has one, and the collectives go through NCCL.

using namespace flashmorph;

namespace {

void misbehave(const std::string& how, Communicator& group, const at::Device& device) {
  if (how == "late")
    for (;;) pause();
  if (how == "stopped") std::raise(SIGSTOP);
  if (how == "dies") std::raise(SIGKILL);
  if (how == "throws") throw std::runtime_error("a card fell off");
  if (how == "diverges") group.barrier();
  if (how == "no_memory") at::zeros({int64_t{1} << 60}, at::TensorOptions(device).dtype(at::kByte));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) return 1;
  const std::string folder = argv[1], how = argv[2];
  MpiSession mpi(&argc, &argv);
  const CudaLibrary* cuda = argc == 4 ? &open_cuda() : nullptr;
  const auto world = mpi.world();
  const int rank = world->rank();
  std::unique_ptr<Communicator> group = world->split(0, rank, "data");
  at::Device device = at::kCPU;
  if (cuda != nullptr) {
    cuda->use_card(rank);
    device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(rank));
    group = cuda->nccl(std::move(group), rank, HealthSection().step);
  }
  const bool hangs = how == "late" || how == "stopped" || how == "diverges" || (cuda != nullptr && how == "dies");
  Watchdog watchdog({.step = hangs ? 2.0 : HealthSection().step}, *world, gather_text(host_name(), *world), std::_Exit);
  if (folder != "-") watchdog.meet_in(folder);
  try {
    for (int64_t step = 1; step <= 5; ++step) {
      const Phase phase(watchdog, step == 3 ? Work::step : Work::evaluate, "align", step);
      if (step == 3 && rank == world->size() - 1) misbehave(how, *group, device);
      at::Tensor values = at::zeros({3, 5}, at::TensorOptions(device));
      group->all_reduce(values, Reduction::sum);
      values.cpu();  // a card's host waits here
    }
  } catch (const std::exception& error) {
    watchdog.give_up(error);
  }
  return 0;
}
