#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "core/model/parameter.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// Frozen means frozen: the sum of each tensor's raw bits, as int64, now and every so many steps after. Any single
// flipped bit changes the sum.
class FrozenWeights {
 public:
  // Those of `all` that need no gradient. every: health.weights_every; 0: none are summed.
  FrozenWeights(const Parameters& all, int64_t every);

  // CommonFailure naming rank, host, tensor and both sums when one has changed on any rank. Collective on the steps it
  // is due; `steps` are done.
  void check(const std::string& stage, int64_t steps, StageContext& context) const;

 private:
  int64_t every_;
  Parameters frozen_;
  at::Tensor sums_;  // int64, on the host
};

}  // namespace flashmorph
