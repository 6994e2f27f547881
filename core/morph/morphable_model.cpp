#include "core/morph/morphable_model.h"

#include <ATen/ATen.h>

#include "core/model/attention.h"
#include "core/model/blocks.h"
#include "core/morph/gate_mix.h"
#include "core/ops/norm.h"

namespace flashmorph {
namespace {

at::Tensor trainable(const at::Tensor& weight) {
  return weight.defined() ? weight.detach().clone().set_requires_grad(true) : weight;
}

AttentionWeights trainable(const AttentionWeights& w) {
  return {trainable(w.q),      trainable(w.k),      trainable(w.v),      trainable(w.o),     trainable(w.q_norm),
          trainable(w.k_norm), trainable(w.q_bias), trainable(w.k_bias), trainable(w.v_bias)};
}

MlpWeights trainable(const MlpWeights& w) { return {trainable(w.gate), trainable(w.up), trainable(w.down)}; }

BlockWeights trainable(const BlockWeights& w) {
  BlockWeights copy{trainable(w.input_norm), trainable(w.post_norm), trainable(w.mlp), std::nullopt};
  if (!w.experts) return copy;
  copy.experts.emplace().router = trainable(w.experts->router);
  for (const MlpWeights& expert : w.experts->experts) copy.experts->experts.push_back(trainable(expert));
  return copy;
}

void append(Parameters& all, const Parameters& more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace

MorphableModel MorphableModel::load(const Checkpoint& checkpoint, const ModelSpec& spec, const Placement& placement,
                                    Shard& shard) {
  MorphableModel model(spec, placement, shard);
  model.embedding_ = load_embedding(checkpoint, spec, placement);
  for (int64_t l = 0; l < spec.layers; ++l)
    model.layers_.push_back(
        {load_block(checkpoint, spec, l, placement), load_attention(checkpoint, spec, l, placement), nullptr});
  model.head_ = load_head(checkpoint, spec, placement, spec.tied_embeddings ? &model.embedding_ : nullptr);
  return model;
}

void MorphableModel::add_branches(const MixerSection& mixer, int64_t seed) {
  for (int64_t l = 0; l < layer_count(); ++l)
    layers_[l].branch = make_branch({spec_, mixer, l, seed, placement_, *shard_}, *layers_[l].attention);
}

void MorphableModel::check_routes(const Routes& routes) const {
  TORCH_CHECK(static_cast<int64_t>(routes.size()) == layer_count(), "one route a layer: ", routes.size(), " for ",
              layer_count(), " layers");
}

MorphableModel MorphableModel::hybrid(const Routes& routes) const {
  check_routes(routes);
  MorphableModel copy(spec_, placement_, *shard_);
  copy.embedding_.tokens = trainable(embedding_.tokens);
  for (int64_t l = 0; l < layer_count(); ++l) {
    MorphableLayer layer{trainable(layers_[l].block), std::nullopt, nullptr};
    if (routes[l].kind == Route::Kind::full) {
      layer.attention = trainable(*layers_[l].attention);
    } else {
      TORCH_CHECK(routes[l].kind == Route::Kind::linear, "a hybrid's layer has one attention, layer ", l, " is mixed");
      layer.branch = layers_[l].branch->clone();
      for (const Parameter& parameter : layer.branch->parameters()) parameter.value.set_requires_grad(true);
    }
    copy.layers_.push_back(std::move(layer));
  }
  copy.head_.norm = trainable(head_.norm);
  copy.head_.output = spec_.tied_embeddings ? copy.embedding_.tokens : trainable(head_.output);
  return copy;
}

at::Tensor MorphableModel::embed(const at::Tensor& tokens_BT) const {
  return flashmorph::embed(tokens_BT, embedding_, *shard_);
}

at::Tensor MorphableModel::normed_input(int64_t layer, const at::Tensor& x) const {
  return copy_to_shards(rms_norm(x, layers_[layer].block.input_norm, spec_.norm_epsilon), *shard_);
}

at::Tensor MorphableModel::attend(int64_t layer, const at::Tensor& x, const Route& route, const Positions& positions,
                                  LayerCache* cache) const {
  const MorphableLayer& here = layers_[layer];
  TORCH_CHECK(route.kind == Route::Kind::linear || here.attention, "layer ", layer, " has no full attention");
  TORCH_CHECK(cache == nullptr || !positions.documents, "packed documents do not continue a cache");
  TORCH_CHECK(route.kind == Route::Kind::full || here.branch, "layer ", layer, " has no linear branch");
  const at::Tensor normed = normed_input(layer, x);
  const auto full = [&] { return full_attention(normed, *here.attention, spec_, positions, cache); };
  const auto linear = [&] { return here.branch->forward(normed, positions, cache); };
  at::Tensor partial;
  switch (route.kind) {
    case Route::Kind::full:
      partial = full();
      break;
    case Route::Kind::linear:
      partial = linear();
      break;
    case Route::Kind::mixed:
      partial = gate_mix(full(), linear(), route.alpha);
      break;
  }
  return x + sum_over_shards(partial, *shard_);
}

at::Tensor MorphableModel::feed_forward(int64_t layer, const at::Tensor& h) const {
  const BlockWeights& block = layers_[layer].block;
  const at::Tensor normed = copy_to_shards(rms_norm(h, block.post_norm, spec_.norm_epsilon), *shard_);
  return h + sum_over_shards(flashmorph::feed_forward(normed, block, spec_), *shard_);
}

at::Tensor MorphableModel::final_hidden(const at::Tensor& x) const {
  return rms_norm(x, head_.norm, spec_.norm_epsilon);
}

at::Tensor MorphableModel::forward(const at::Tensor& tokens_BT, const Routes& routes, const Positions& positions,
                                   std::vector<LayerCache>* caches) const {
  check_routes(routes);
  TORCH_CHECK(caches == nullptr || static_cast<int64_t>(caches->size()) == layer_count(), "one cache a layer");
  at::Tensor x = embed(tokens_BT);
  for (int64_t l = 0; l < layer_count(); ++l)
    x = feed_forward(l, attend(l, x, routes[l], positions, caches != nullptr ? &(*caches)[l] : nullptr));
  return final_hidden(x);
}

Positions MorphableModel::positions(int64_t start, int64_t length, const std::optional<at::Tensor>& documents) const {
  return positions_of(spec_, start, length, placement_, documents);
}

Parameters MorphableModel::frozen_parameters() const {
  Parameters all = parameters_of(embedding_);
  for (int64_t l = 0; l < layer_count(); ++l) {
    if (layers_[l].attention) append(all, parameters_of(*layers_[l].attention, l));
    append(all, parameters_of(layers_[l].block, l));
  }
  append(all, parameters_of(head_, spec_.tied_embeddings));
  return all;
}

Parameters MorphableModel::branch_parameters() const {
  Parameters all;
  for (const MorphableLayer& layer : layers_)
    if (layer.branch) append(all, layer.branch->parameters());
  return all;
}

Parameters MorphableModel::all_parameters() const {
  Parameters all = frozen_parameters();
  append(all, branch_parameters());
  return all;
}

}  // namespace flashmorph
