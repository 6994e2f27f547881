#pragma once

#include <ATen/record_function.h>
#include <c10/core/ScalarType.h>

#include <memory>
#include <vector>

namespace flashmorph {

// What a card does for one operator.
struct Kernel {
  enum class Kind {
    pointwise,  // everything that is not below: norms, activations, rotations, sums, copies, the optimizer
    product,
    attention,
    lightning,  // the fused recurrences of core/ops/cuda
    gated_linear,
    gated_delta,
    scalar_gated,
  };
  Kind kind;
  at::ScalarType dtype;
  double flop;   // of products and attention
  double bytes;  // of the tensors that it reads and writes, each once
};

// The kernels that a card would start for the operators that this thread calls on tensors of the meta device while it
// lives. An operator that has a fused kernel on cards counts once, as the tensors at its boundary; views and new memory
// do not count. One at a time in a thread.
class KernelCounter {
 public:
  KernelCounter();
  ~KernelCounter();
  KernelCounter(const KernelCounter&) = delete;
  KernelCounter& operator=(const KernelCounter&) = delete;

  std::vector<Kernel> take();  // those since the last call, in order

 private:
  struct Call;
  static std::unique_ptr<at::ObserverContext> started(const at::RecordFunction& call);
  static void ended(const at::RecordFunction& call, at::ObserverContext* context);

  std::vector<Kernel> kernels_;
  Call* innermost_ = nullptr;
  at::CallbackHandle handle_;
};

}  // namespace flashmorph
