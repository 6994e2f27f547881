#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>
#include <vector>

namespace flashmorph {

// Gradients of weights that a backward pass leaves for later, so that those of its inputs are there sooner: nobody
// waits for a weight's before the step's end. A pipeline fills with them the time in which a rank would wait (arXiv
// 2401.10241). What is kept for each: its layer's input and its output's gradient.
class PutOffGradients {
 public:
  // Projections that a thread's forward pass meets while one is alive put the products for their trained leaves off,
  // in whichever thread autograd goes back through them: a card has one of its own. The list outlives that pass.
  // Without a list nothing is put off.
  class Scope {
   public:
    explicit Scope(PutOffGradients* list);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PutOffGradients* outer_;
  };

  static PutOffGradients* collecting();  // this thread's list, or none

  // `make` works out a gradient of `leaf`.
  void add(const at::Tensor& leaf, std::function<at::Tensor()> make) { list_.emplace_back(leaf, std::move(make)); }

  // Adds them to the leaves' gradients, in the order in which the backward pass met them. Once.
  void work_out();

 private:
  std::vector<std::pair<at::Tensor, std::function<at::Tensor()>>> list_;  // leaf, gradient
};

}  // namespace flashmorph
