#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <utility>

namespace flashmorph {

// Gradients of weights that a backward pass leaves for later, so that those of its inputs are there sooner: nobody
// waits for a weight's before the step's end. They fill the time in which a rank would wait for others: of a pipeline
// (arXiv 2401.10241), who asks for them then, or for the shards' numbers, in the backward pass itself. What is kept for
// each: its layer's input and its output's gradient.
class PutOffGradients {
 public:
  enum class Until { asked, shards_are_waited_for };
  explicit PutOffGradients(Until until = Until::asked) : until_(until) {}

  // Projections that a thread's forward pass meets while one is alive put the products for their trained leaves off,
  // in whichever thread autograd goes back through them: it has one for each card unless told otherwise. The list
  // outlives that pass. Without a list nothing is put off.
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

  // Adds them to the leaves' gradients, in the order in which the backward pass met them: each once, and no more of
  // them than this share of the multiply-adds takes.
  void work_out(double share = 1.0);

  // Somebody waits for other shards: the same, if they were put off until then.
  void fill_wait(double share) {
    if (until_ == Until::shards_are_waited_for) work_out(share);
  }

 private:
  Until until_;
  std::deque<std::pair<at::Tensor, std::function<at::Tensor()>>> list_;  // leaf, gradient
};

}  // namespace flashmorph
