#include "core/mixer/window.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "core/mixer/initial.h"
#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "core/ops/projection.h"
#include "core/ops/windowed_attention.h"

// Sliding-window attention: the teacher's own, over the last W tokens alone, and if asked a sink a head. It starts as
// the teacher, whose key and value heads it keeps grouped; its cache holds W tokens at most. Letters: B batch, T
// tokens, P tokens with those of the cache, H query heads, G key and value heads, K head dim.

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
    if (context.mixer.own.of<WindowSettings>().sinks)
      sinks_H_ = at::zeros({teacher.q.size(0) / spec_.head_dim}, teacher.q.options().requires_grad(false));
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    QueriesKeysValues x = queries_keys_values(x_BTD, weights_, spec_, positions, rope_);
    x.q_BTHK = with_scale(x.q_BTHK, spec_);
    const at::Tensor o_BTHK =
        cache == nullptr ? windowed_attention(x.q_BTHK, x.k_BTGK, x.v_BTGK, window_, positions.place_T, sinks_H_)
        : positions.rows ? next_of_rows(x, positions, *cache)
                         : after_cached(x, positions.start, *cache);
    return project(o_BTHK.flatten(2, 3), weights_.o, weights_.o_bias.here());
  }

  Parameters parameters() const override {
    Parameters all = parameters_of(weights_, layer_);
    const std::string theirs = layer_prefix(layer_) + "self_attn.", ours = layer_prefix(layer_) + "linear_attn.";
    for (Parameter& parameter : all) parameter.name.replace(0, theirs.size(), ours);
    if (sinks_H_) all.push_back({ours + "sinks", *sinks_H_, Split::rows});
    return all;
  }

  std::unique_ptr<LinearBranch> clone() const override {
    auto copy = std::make_unique<WindowBranch>(*this);
    copy->own_weights();
    return copy;
  }

 private:
  void own_weights() {
    for (at::Tensor* weight : every_weight(weights_))
      if (weight->defined()) *weight = weight->detach().clone();
    if (sinks_H_) sinks_H_ = sinks_H_->detach().clone();
  }

  // The cache is a ring, [B, W, 2*G*K]: position p has its key and value at p mod W. Softmax asks for no order.
  at::Tensor& ring_of(LayerCache& cache, const at::Tensor& kv_BTC) const {
    if (!cache.recent_BPC.defined())
      cache.recent_BPC = at::zeros({kv_BTC.size(0), window_, kv_BTC.size(2)}, kv_BTC.options());
    return cache.recent_BPC;
  }

  at::Tensor next_of_rows(const QueriesKeysValues& x, const Positions& positions, LayerCache& cache) const {
    const at::Tensor kv_B1C = at::cat({x.k_BTGK, x.v_BTGK}, 2).flatten(2);
    at::Tensor& ring = ring_of(cache, kv_B1C);
    ring.index_put_({positions.rows->row_B, positions.rows->start_B.remainder(window_)}, kv_B1C.select(1, 0));
    const std::vector<at::Tensor> kv = ring.unflatten(2, {-1, spec_.head_dim}).chunk(2, 2);
    return next_windowed_attention(x.q_BTHK, kv[0], kv[1], positions.rows->visible_B.clamp_max(window_),
                                   std::min(positions.start + 1, window_), sinks_H_);
  }

  at::Tensor after_cached(const QueriesKeysValues& x, int64_t start, LayerCache& cache) const {
    const at::Tensor kv_BTC = at::cat({x.k_BTGK, x.v_BTGK}, 2).flatten(2);
    at::Tensor& ring = ring_of(cache, kv_BTC);
    const auto places = [&](int64_t first, int64_t last) {
      return at::arange(first, last, at::TensorOptions(at::kLong).device(ring.device())).remainder(window_);
    };
    const int64_t tokens = kv_BTC.size(1), past = std::min(start, window_ - 1), kept = std::min(tokens, window_);
    const at::Tensor all_BPC = at::cat({ring.index_select(1, places(start - past, start)), kv_BTC}, 1);
    ring.index_copy_(1, places(start + tokens - kept, start + tokens), kv_BTC.narrow(1, tokens - kept, kept));
    const std::vector<at::Tensor> kv = all_BPC.unflatten(2, {-1, spec_.head_dim}).chunk(2, 2);
    return windowed_attention(x.q_BTHK, kv[0], kv[1], window_, std::nullopt, sinks_H_);
  }

  ModelSpec spec_;
  bool rope_;
  int64_t window_, layer_;
  AttentionWeights weights_;
  std::optional<at::Tensor> sinks_H_;  // this rank's heads
};

int64_t cache_bytes(const MixerSection& mixer, const ModelSpec& model, int64_t element) {
  return mixer.own.of<WindowSettings>().window * model.kv_bytes(element);
}

[[maybe_unused]] const bool registered = register_branch<WindowSettings>(
    "window", {.make = make<WindowBranch>, .python = window_code, .cache_bytes = cache_bytes});

}  // namespace
}  // namespace flashmorph
