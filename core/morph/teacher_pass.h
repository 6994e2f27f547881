#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "core/morph/morphable_model.h"

namespace flashmorph {

// A teacher's way through its piece's layers, full attention everywhere, beside a pass that learns from it: sublayer by
// sublayer, an attention or a feed-forward each, without gradients. The shards' sum at the end of each is still under
// way when the next one is asked for, so that it arrives while the other pass computes, and the other's meanwhile.
class TeacherPass {
 public:
  // h: the states behind a layer's attention, x those before it.
  using See = std::function<void(const at::Tensor& x, const at::Tensor& h)>;

  TeacherPass(const MorphableModel& teacher, at::Tensor x, const Positions& positions, See see_attention = {})
      : teacher_(teacher), x_(std::move(x)), positions_(positions), see_(std::move(see_attention)) {}

  // So many of the piece's sublayers are begun when this returns; nothing happens when they already were.
  void reach(int64_t sublayers);

  // The states behind the last sublayer that was begun.
  at::Tensor states();

 private:
  const MorphableModel& teacher_;
  at::Tensor x_;  // behind the last sublayer that has arrived
  Positions positions_;
  See see_;
  int64_t begun_ = 0;
  Arriving under_way_;
};

}  // namespace flashmorph
