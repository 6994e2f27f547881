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
  // While one is alive, the projections' backward passes of this thread put the products for their trained leaves off.
  // It must be there in the forward pass, too. One without a list puts nothing off.
  class Scope {
   public:
    Scope() : Scope(nullptr) {}
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    friend class PutOffGradients;
    explicit Scope(PutOffGradients* list);
    PutOffGradients* outer_;
  };

  Scope scope() { return Scope(this); }

  // Adds them to the leaves' gradients, in the order in which the backward pass met them. Once.
  void work_out();

  static bool is_collecting();

  // The gradient that `make` works out for `weight`, or nothing where it was put off.
  static at::Tensor now_or_later(const at::Tensor& weight, std::function<at::Tensor()> make);

 private:
  std::vector<std::pair<at::Tensor, std::function<at::Tensor()>>> list_;  // leaf, gradient
};

}  // namespace flashmorph
