#pragma once

#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>

#include "core/ops/cuda/element.h"

namespace flashmorph::cuda {

// A stream beside the device's current one: what is launched on it comes after all that the current one has been given,
// and before all that the current one is given after the join. What it reads and writes is made before and lives until
// the join: the allocator hands memory on in the order of the current stream, which has waited by then, so none is
// marked with recordStream. Streams meet by events alone, which a graph that is captured follows; should the pool give
// the current stream itself, the work is done in turn.
class Beside {
 public:
  explicit Beside(c10::DeviceIndex device)
      : current_(c10::cuda::getCurrentCUDAStream(device)),
        aside_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {
    meeting_.record(current_);
    meeting_.block(aside_);
  }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;
  ~Beside() {  // an exception on its way gives back what the stream may still use
    if (joined_) return;
    try {
      join();
    } catch (const std::exception&) {  // the device is lost, as the exception under way says
    }
  }

  Stream stream() const { return aside_.stream(); }

  void join() {
    joined_ = true;
    meeting_.record(aside_);
    meeting_.block(current_);
  }

 private:
  c10::cuda::CUDAStream current_, aside_;
  c10::cuda::CUDAEvent meeting_;  // without timing; a wait is for the last record before it
  bool joined_ = false;
};

}  // namespace flashmorph::cuda
