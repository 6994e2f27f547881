#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// The ranks before and after this one when a model's layers lie on several ranks in a row: states come from the one and
// go to the other. This form stands alone, first and last in one; distributed/ derives the others.
class PipelinePeers {
 public:
  virtual ~PipelinePeers() = default;
  virtual bool is_first() const { return true; }
  virtual bool is_last() const { return true; }

  // From the rank before, into a tensor of the right shape; to the rank after, at once: `states` must not change later.
  virtual void receive(at::Tensor& states) {}
  virtual void send(const at::Tensor& states) {}

  // Every rank of the row gets the last one's values, in place.
  virtual void share_last(at::Tensor& values) {}

  // The one that stands alone.
  static PipelinePeers& none();
};

}  // namespace flashmorph
