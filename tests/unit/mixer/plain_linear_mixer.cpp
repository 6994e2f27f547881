// A mixer of a user's own: plain linear attention, S_t = S_{t-1} + k_t v_t^T, y = o_proj(S_t^T q_t). This file and its
// one registration are all there is to it; branches_test.cpp runs it like the others.
#include <ATen/ATen.h>

#include "core/mixer/branch_with.h"
#include "core/mixer/initial.h"
#include "core/model/attention.h"
#include "core/ops/linear_attention.h"

namespace flashmorph {
namespace {

struct Weights {
  AttentionWeights heads;

  template <class Self, class Visit>
  static void each(Self& w, Visit visit) {
    each_attention_weight(w.heads, visit);
  }
};

class PlainLinearBranch : public BranchWith<PlainLinearBranch, Weights> {
 public:
  PlainLinearBranch(const BranchContext& context, const AttentionWeights& teacher) : BranchWith(context) {
    weights_.heads = expanded(teacher, spec_);
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    const auto [q, k, v] = queries_keys_values(x_BTD, weights_.heads, spec_, positions, mixer_.rope);
    const at::Tensor no_decay = at::zeros({q.size(2)}, at::kDouble);
    const auto [o, state] =
        lightning_attention(q, k, v, no_decay, state_of(cache), positions.documents, scale(), mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    return at::linear(o.flatten(2, 3), weights_.heads.o);
  }
};

[[maybe_unused]] const bool registered = register_branch("plain", {.make = make<PlainLinearBranch>});

}  // namespace
}  // namespace flashmorph
