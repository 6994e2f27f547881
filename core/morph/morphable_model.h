#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/mixer/linear_branch.h"
#include "core/model/cache.h"
#include "core/model/model_spec.h"
#include "core/model/weights.h"
#include "core/shard/shard.h"

namespace flashmorph {

// Which attention a layer uses in a forward pass.
struct Route {
  enum class Kind { full, linear, mixed };
  Kind kind = Kind::full;
  at::Tensor alpha;  // float64 scalar, when mixed

  static Route full() { return {Kind::full, {}}; }
  static Route linear() { return {Kind::linear, {}}; }
  static Route mixed(at::Tensor alpha) { return {Kind::mixed, std::move(alpha)}; }
};

using Routes = std::vector<Route>;  // one per layer

// A decoder layer with full attention, a linear branch, or both.
//   H  = X + A(LN(X)),  A = A_full, A_lin, or alpha*A_full + (1-alpha)*A_lin
//   X' = H + FFN(LN(H))
struct MorphableLayer {
  BlockWeights block;
  std::optional<AttentionWeights> attention;
  std::unique_ptr<LinearBranch> branch;
};

// One rank's piece of a model whose layers are morphable: the teacher (every route full), the mixture, and a hybrid are
// the same object under different routes. Letters: B batch, T tokens, D hidden.
class MorphableModel {
 public:
  // Reads this rank's slices of the checkpoint; layers have full attention and no branch yet.
  static MorphableModel load(const Checkpoint& checkpoint, const ModelSpec& spec, const Placement& placement,
                             Shard& shard);

  // Gives every layer a branch started from its attention.
  void add_branches(const MixerSection& mixer, int64_t seed);

  // A trainable copy that keeps, of each layer, only the attention its route names.
  MorphableModel hybrid(const Routes& routes) const;

  at::Tensor embed(const at::Tensor& tokens_BT) const;                // X of layer 0
  at::Tensor normed_input(int64_t layer, const at::Tensor& x) const;  // LN(X), copied to shards
  at::Tensor attend(int64_t layer, const at::Tensor& x, const Route& route, const Positions& positions,
                    LayerCache* cache = nullptr) const;               // H: one all-reduce
  at::Tensor feed_forward(int64_t layer, const at::Tensor& h) const;  // X': one all-reduce
  at::Tensor final_hidden(const at::Tensor& x) const;                 // ready for the head

  // embed, every layer by its route, final_hidden. With caches (one a layer) the tokens continue the cached ones;
  // packed documents cannot.
  at::Tensor forward(const at::Tensor& tokens_BT, const Routes& routes, const Positions& positions,
                     std::vector<LayerCache>* caches = nullptr) const;
  const at::Tensor& head() const { return head_.output; }  // [vocabulary/R, D]

  Positions positions(int64_t start, int64_t length, const std::optional<at::Tensor>& documents = std::nullopt) const;

  const ModelSpec& spec() const { return spec_; }
  const Placement& placement() const { return placement_; }
  Shard& shard() const { return *shard_; }
  int64_t layer_count() const { return static_cast<int64_t>(layers_.size()); }
  const MorphableLayer& layer(int64_t index) const { return layers_[index]; }

  Parameters frozen_parameters() const;  // all but the branches
  Parameters branch_parameters() const;  // in layer order
  Parameters all_parameters() const;

 private:
  MorphableModel(const ModelSpec& spec, const Placement& placement, Shard& shard)
      : spec_(spec), placement_(placement), shard_(&shard) {}

  void check_routes(const Routes& routes) const;

  ModelSpec spec_;
  Placement placement_;
  Shard* shard_;
  EmbeddingWeights embedding_;
  std::vector<MorphableLayer> layers_;
  HeadWeights head_;
};

}  // namespace flashmorph
