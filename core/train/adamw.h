#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace flashmorph {

// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), through torch's fused kernel: one pass over the
// parameters a step. Parameters are leaf tensors; gradients are handed in, in the same order. What is shorter than
// float32 is updated in a float32 copy and rounded from there: a step is often too small to move a bfloat16.
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.0;
  };

  // What a parameter's next step depends on besides its gradient, all of its shape and at least float32. The tensors
  // are the optimizer's own.
  struct State {
    at::Tensor value;
    at::Tensor first_moment;
    at::Tensor second_moment;
  };

  AdamW(std::vector<at::Tensor> parameters, Options options);
  void step(const std::vector<at::Tensor>& gradients, double learning_rate);

  std::vector<State> states() const;  // in the order of the parameters
  void resume_at(int64_t steps);      // the states were overwritten with those after so many steps

 private:
  std::vector<at::Tensor> as_exact(std::vector<at::Tensor> gradients) const;
  void round_into_parameters();

  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> exact_;  // the parameters themselves, or their float32 copies
  std::vector<at::Tensor> first_moments_;
  std::vector<at::Tensor> second_moments_;
  at::Tensor steps_;  // the same for all, on their device
  Options options_;
};

}  // namespace flashmorph
