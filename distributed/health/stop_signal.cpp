#include "distributed/health/stop_signal.h"

#include <ATen/ATen.h>

#include <csignal>

namespace flashmorph {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1};

volatile std::sig_atomic_t asked = 0;  // a signal handler can reach nothing else

void remember(int signal) {
  asked = 1;
  std::signal(signal, SIG_DFL);
}

}  // namespace

StopSignal::StopSignal() {
  asked = 0;
  for (const int signal : kSignals) std::signal(signal, remember);
}

StopSignal::~StopSignal() {
  for (const int signal : kSignals) std::signal(signal, SIG_DFL);
}

bool StopSignal::agreed(Communicator& world) const {
  at::Tensor any = at::full({1}, static_cast<int64_t>(asked), at::kLong);
  world.all_reduce(any, Reduction::max);
  return any.item<int64_t>() != 0;
}

}  // namespace flashmorph
