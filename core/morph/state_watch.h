#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace flashmorph {

class MorphableModel;

// Sees what the models of this thread make in their forward passes while it lives, piece by piece in the order of the
// computation: to find the first number that is not finite. One at a time in a thread.
class StateWatch {
 public:
  // layer: in the whole model; -1 for the embedding and the final norm. piece: in words.
  using See =
      std::function<void(const MorphableModel& model, int64_t layer, const char* piece, const at::Tensor& states)>;

  explicit StateWatch(See see);
  ~StateWatch();
  StateWatch(const StateWatch&) = delete;
  StateWatch& operator=(const StateWatch&) = delete;

  // The states, after whoever watches has seen them.
  static at::Tensor seen(const MorphableModel& model, int64_t layer, const char* piece, at::Tensor states);

 private:
  See see_;
};

}  // namespace flashmorph
