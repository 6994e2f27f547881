#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/mixer/linear_branch.h"
#include "core/model/cache.h"
#include "core/model/model_spec.h"
#include "core/model/weights.h"
#include "core/shard/layer_range.h"
#include "core/shard/pipeline_peers.h"
#include "core/shard/shard.h"

namespace flashmorph {

// Which attention a layer uses in a forward pass.
struct Route {
  enum class Kind { full, linear, mixed };
  Kind kind = Kind::full;
  at::Tensor alpha;             // float64 scalar, when mixed
  std::optional<double> value;  // alpha's number, where the host knows it

  static Route full() { return {Kind::full, {}, {}}; }
  static Route linear() { return {Kind::linear, {}, {}}; }
  static Route mixed(at::Tensor alpha, std::optional<double> value = {}) {
    return {Kind::mixed, std::move(alpha), value};
  }
};

using Routes = std::vector<Route>;  // one per layer

// Of a hybrid: full attention in these layers, linear in all others. They must be layers of the model.
Routes routes_that_keep(const std::vector<int64_t>& full_layers, int64_t layers);

// A decoder layer with full attention, a linear branch, or both.
//   H  = X + A(LN(X)),  A = A_full, A_lin, or alpha*A_full + (1-alpha)*A_lin
//   X' = H + FFN(LN(H))
// or as core/model/blocks.h has it for families that put the norm or a multiplier elsewhere.
struct MorphableLayer {
  BlockWeights block;
  std::optional<AttentionWeights> attention;
  std::unique_ptr<LinearBranch> branch;
};

// A layer's attention or its feed-forward, counted through the model: layer l has 2 l and 2 l + 1.
struct Sublayer {
  int64_t number;

  static Sublayer attention(int64_t layer) { return {2 * layer}; }
  static Sublayer feed_forward(int64_t layer) { return {2 * layer + 1}; }
  int64_t layer() const { return number / 2; }
  bool is_attention() const { return number % 2 == 0; }
};

// One rank's piece of a model whose layers are morphable: the teacher (every route full), the mixture, and a hybrid are
// the same object under different routes. The piece is a slice (its shard) of some consecutive layers; the piece with
// layer 0 also has the embedding, the one with the last layer the head. Layers go by their number in the whole model
// everywhere. Where the shard's pieces share the tokens, X and H are this rank's partition of them. A StateWatch sees
// what each piece of a forward pass makes. Letters: B batch, T tokens, D hidden.
class MorphableModel {
 public:
  // Reads this rank's slices of the checkpoint; layers have full attention and no branch yet. `shard` and
  // `pipeline_peers` outlive the model. Without `layers`: all of them.
  static MorphableModel load(const ModelFiles& files, const ModelSpec& spec, const Placement& placement, Shard& shard);
  static MorphableModel load(const ModelFiles& files, const ModelSpec& spec, const Placement& placement, Shard& shard,
                             LayerRange layers, PipelinePeers& pipeline_peers);

  // The same of a hybrid that has, of each layer, only one attention: the layers that are `full` the checkpoint's, the
  // others the branch of `mixer`, whose weights stand beside them under its own names.
  static MorphableModel load_hybrid(const ModelFiles& files, const ModelSpec& spec, const MixerSection& mixer,
                                    const std::vector<bool>& full, const Placement& placement, Shard& shard,
                                    LayerRange layers, PipelinePeers& pipeline_peers);

  // A whole model on one rank from its weights.
  static MorphableModel assemble(const ModelSpec& spec, const Placement& placement, Shard& shard,
                                 EmbeddingWeights embedding, std::vector<MorphableLayer> layers, HeadWeights head);

  // Gives every layer of this piece a branch started from its attention.
  void add_branches(const MixerSection& mixer, int64_t seed);

  // A trainable copy that keeps, of each layer, only the attention its route names.
  MorphableModel hybrid(const Routes& routes) const;

  at::Tensor embed(const at::Tensor& tokens_BT) const;                // X of layer 0; the first piece
  at::Tensor normed_input(int64_t layer, const at::Tensor& x) const;  // LN(X), all tokens on every rank
  // A_full(LN X) and A_lin(LN X): this rank's part of the sum over its shard.
  at::Tensor full_attention(int64_t layer, const at::Tensor& normed, const Positions& positions,
                            LayerCache* cache = nullptr) const;
  at::Tensor linear_attention(int64_t layer, const at::Tensor& normed, const Positions& positions,
                              LayerCache* cache = nullptr) const;
  at::Tensor attend(int64_t layer, const at::Tensor& x, const Route& route, const Positions& positions,
                    LayerCache* cache = nullptr) const;               // H: one reduction
  at::Tensor feed_forward(int64_t layer, const at::Tensor& h) const;  // X': one reduction
  // Both in pieces, for those who have other work while the shards' numbers are under way:
  //   attend(l, x, ..)   = after(attention, x, sum over the shard of attention_part(l, start_read(attention, x), ..))
  //   feed_forward(l, h) = after(feed-forward, h, sum over the shard of feed_forward_part(l, start_read(.., h)))
  Arriving start_read(Sublayer sublayer, const at::Tensor& x) const;  // LN(X) or LN(H), on its way to all ranks
  at::Tensor attention_part(int64_t layer, const at::Tensor& normed, const Route& route, const Positions& positions,
                            LayerCache* cache = nullptr) const;
  at::Tensor feed_forward_part(int64_t layer, const at::Tensor& normed) const;
  at::Tensor after(Sublayer sublayer, const at::Tensor& x, const at::Tensor& sum) const;  // H or X'
  // after() and the next sublayer's start_read() in one.
  struct Onward {
    at::Tensor states;  // H; X'
    Arriving read;      // LN(H); LN(X')
  };
  Onward onward_from(Sublayer sublayer, const at::Tensor& x, const at::Tensor& sum) const;
  at::Tensor final_hidden(const at::Tensor& x) const;  // ready for the head, all tokens on every rank; the last piece

  // X through all of this piece's layers, each by its route; with caches (one a layer of the whole model) the tokens
  // continue the cached ones; packed documents cannot.
  at::Tensor through_layers(at::Tensor x, const Routes& routes, const Positions& positions,
                            std::vector<LayerCache>* caches = nullptr) const;

  // The whole model on these tokens: embed (or the states of the piece before), through_layers, final_hidden. Undefined
  // on every piece but the last: there the states went on. No gradient crosses from piece to piece.
  at::Tensor forward(const at::Tensor& tokens_BT, const Routes& routes, const Positions& positions,
                     std::vector<LayerCache>* caches = nullptr) const;
  const at::Tensor& head() const { return head_.output; }  // [vocabulary/R, D]; the last piece

  Positions positions(int64_t start, int64_t length, const std::optional<at::Tensor>& documents = std::nullopt) const;

  const ModelSpec& spec() const { return spec_; }
  const Placement& placement() const { return placement_; }
  Shard& shard() const { return *shard_; }
  PipelinePeers& pipeline_peers() const { return *pipeline_peers_; }
  int64_t layer_count() const { return spec_.layers; }  // of the whole model
  const LayerRange& own_layers() const { return own_; }
  bool has_embedding() const { return own_.first == 0; }
  bool has_head() const { return own_.last == spec_.layers; }
  const MorphableLayer& layer(int64_t index) const;  // one of this piece's

  Parameters frozen_parameters() const;  // all but the branches
  Parameters branch_parameters() const;  // in layer order
  Parameters all_parameters() const;
  std::vector<at::Tensor> weights_of(int64_t layer) const;

 private:
  MorphableModel(const ModelSpec& spec, const Placement& placement, Shard& shard, LayerRange own,
                 PipelinePeers& pipeline_peers)
      : spec_(spec), placement_(placement), shard_(&shard), own_(own), pipeline_peers_(&pipeline_peers) {}

  void check_routes(const Routes& routes) const;
  const at::Tensor& norm_of(Sublayer sublayer) const;
  Arriving on_its_way(Sublayer sublayer, const at::Tensor& own_normed) const;
  at::Tensor seen_behind(Sublayer sublayer, const at::Tensor& states) const;
  Parameters embedding_parameters() const;
  Parameters head_parameters() const;

  ModelSpec spec_;
  Placement placement_;
  Shard* shard_;
  LayerRange own_;
  PipelinePeers* pipeline_peers_;
  EmbeddingWeights embedding_;
  std::vector<MorphableLayer> layers_;  // own_.first is the first
  HeadWeights head_;
};

}  // namespace flashmorph
