#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/morph/morphable_model.h"
#include "core/ops/rows_read.h"

namespace flashmorph {

// What is gone through, and how: consecutive sublayers of one piece of a model.
struct Way {
  const MorphableModel& model;  // outlives every pass
  Routes routes;                // one a layer of the whole model
  Positions positions;
  int64_t first, last;  // sublayers [first, last), by number

  // All of the piece's; without `last_feed_forward` but the one behind the model's last attention, if it is here.
  static Way of(const MorphableModel& model, Routes routes, const Positions& positions, bool last_feed_forward = true);
};

// One way through, sublayer by sublayer. The shards' numbers are under way while something else is computed: the sum at
// a sublayer's end, and where the tokens are shared the gather before the next one. Gradients are recorded throughout
// when they were where the pass was made.
class Pass {
 public:
  // Gets the states before a layer's attention, x, and those behind it, h; the pass goes on with what it gives back.
  using See = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& h)>;

  Pass(Way way, at::Tensor x, See see_attention = {});

  // To the end. `beside`, if it has come no further, goes as far, a sublayer in turns.
  void finish(Pass* beside = nullptr);

  // Behind the last sublayer that was computed.
  at::Tensor states();

 private:
  void enter();
  void come_to(const at::Tensor& states);
  void compute(const std::function<void()>& meanwhile);

  Way way_;
  at::Tensor x_;  // behind the last sum that has arrived
  See see_;
  bool records_;
  int64_t next_;       // sublayer
  Arriving read_;      // what `next_` reads, when it was entered
  Arriving computed_;  // the sum of the one before
};

// A teacher's: full attention everywhere, without gradients, from x on.
std::shared_ptr<Pass> teacher_pass(const MorphableModel& teacher, const at::Tensor& x, const Positions& positions,
                                   bool last_feed_forward = true, Pass::See see_attention = {});

struct PassedThrough {
  at::Tensor states;               // behind the way
  std::vector<at::Tensor> looked;  // by layer, the rows that `look` read of the states behind its attention
};

// A pass from x, beside another one, if any. `recompute`: of each layer only its input is kept for the backward pass,
// where the layer runs again (core/train/recompute.h).
PassedThrough pass_through(const Way& way, at::Tensor x, const std::shared_ptr<Pass>& beside, bool recompute,
                           const std::function<RowsRead(const at::Tensor& h)>& look = {});

}  // namespace flashmorph
