#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "core/mixer/linear_branch.h"

namespace flashmorph {

// A branch whose weights list themselves, once, for whoever needs them all:
//   template <class Self, class Visit> static void Weights::each(Self& weights, Visit visit)
// calls visit(name, tensor, split, partial_gradient); undefined tensors are left out.
template <class Branch, class Weights>
class BranchWith : public LinearBranch {
 public:
  Parameters parameters() const override {
    Parameters all;
    Weights::each(weights_, [&](const char* name, const at::Tensor& value, Split split, bool partial_gradient) {
      if (value.defined())
        all.push_back({layer_prefix(layer_) + "linear_attn." + name, value, split, partial_gradient});
    });
    return all;
  }

  std::unique_ptr<LinearBranch> clone() const override {
    auto copy = std::make_unique<Branch>(static_cast<const Branch&>(*this));
    Weights::each(copy->weights_, [](const char*, at::Tensor& value, Split, bool) {
      if (value.defined()) value = value.detach().clone();
    });
    return copy;
  }

 protected:
  explicit BranchWith(const BranchContext& context)
      : spec_(context.spec), mixer_(context.mixer), layer_(context.layer) {}

  double scale() const { return 1.0 / std::sqrt(static_cast<double>(spec_.head_dim)); }

  // The cached state that this forward continues.
  static std::optional<at::Tensor> state_of(const LayerCache* cache) {
    return cache != nullptr && cache->state_BHKV.defined() ? std::optional(cache->state_BHKV) : std::nullopt;
  }

  ModelSpec spec_;
  MixerSection mixer_;
  int64_t layer_;
  Weights weights_;
};

// The attention weights that a mixer keeps, for Weights::each.
template <class Self, class Visit>
void each_attention_weight(Self& w, Visit visit) {
  visit("q_proj.weight", w.q, Split::rows, false);
  visit("k_proj.weight", w.k, Split::rows, false);
  visit("v_proj.weight", w.v, Split::rows, false);
  visit("o_proj.weight", w.o, Split::columns, false);
  visit("q_proj.bias", w.q_bias, Split::rows, false);
  visit("k_proj.bias", w.k_bias, Split::rows, false);
  visit("v_proj.bias", w.v_bias, Split::rows, false);
  visit("q_norm.weight", w.q_norm, Split::none, true);
  visit("k_norm.weight", w.k_norm, Split::none, true);
}

}  // namespace flashmorph
