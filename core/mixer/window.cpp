#include "core/mixer/window.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "core/ops/projection.h"
#include "core/ops/windowed_attention.h"

// Sliding-window attention: the teacher's own, over the last W tokens alone. It starts as the teacher, whose key and
// value heads it keeps grouped; its cache holds W tokens at most. Letters: B batch, T tokens, P tokens with those of
// the cache, G key and value heads, K head dim.

namespace flashmorph {

std::string_view window_code();

namespace {

class WindowBranch : public LinearBranch {
 public:
  WindowBranch(const BranchContext& context, const AttentionWeights& teacher)
      : spec_(context.spec),
        rope_(context.mixer.rope),
        window_(context.mixer.own.of<WindowSettings>().window),
        layer_(context.layer),
        weights_(teacher) {
    own_weights();
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    auto [q, k, v] = queries_keys_values(x_BTD, weights_, spec_, positions, rope_);
    if (cache != nullptr) {
      k = continued(cache->keys_BTGK, k);
      v = continued(cache->values_BTGK, v);
    }
    const at::Tensor o_BTHK = windowed_attention(with_scale(q, spec_), k, v, window_, positions.place_T);
    return project(o_BTHK.flatten(2, 3), weights_.o, weights_.o_bias.here());
  }

  Parameters parameters() const override {
    Parameters all = parameters_of(weights_, layer_);
    const std::string theirs = layer_prefix(layer_) + "self_attn.", ours = layer_prefix(layer_) + "linear_attn.";
    for (Parameter& parameter : all) parameter.name.replace(0, theirs.size(), ours);
    return all;
  }

  std::unique_ptr<LinearBranch> clone() const override {
    auto copy = std::make_unique<WindowBranch>(*this);
    copy->own_weights();
    return copy;
  }

 private:
  void own_weights() {
    AttentionWeights& w = weights_;
    for (at::Tensor* weight :
         {&w.q, &w.k, &w.v, &w.o, &w.q_norm, &w.k_norm, &w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias.value})
      if (weight->defined()) *weight = weight->detach().clone();
  }

  // The cached tokens and these; of all of them the next token will see the last W - 1.
  at::Tensor continued(at::Tensor& cached_BPGK, const at::Tensor& now_BTGK) const {
    const at::Tensor all = cached_BPGK.defined() ? at::cat({cached_BPGK, now_BTGK}, 1) : now_BTGK;
    const int64_t kept = std::min(window_ - 1, all.size(1));
    cached_BPGK = all.narrow(1, all.size(1) - kept, kept).clone();
    return all;
  }

  ModelSpec spec_;
  bool rope_;
  int64_t window_, layer_;
  AttentionWeights weights_;
};

int64_t cache_bytes(const MixerSection& mixer, const ModelSpec& model, int64_t element) {
  return mixer.own.of<WindowSettings>().window * model.kv_bytes(element);
}

[[maybe_unused]] const bool registered = register_branch<WindowSettings>(
    "window", {.make = make<WindowBranch>, .python = window_code, .cache_bytes = cache_bytes});

}  // namespace
}  // namespace flashmorph
