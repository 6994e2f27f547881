#include "core/morph/morphable_model.h"

#include <ATen/ATen.h>

#include "core/model/attention.h"
#include "core/model/blocks.h"
#include "core/morph/state_watch.h"
#include "core/ops/gate_mix.h"
#include "core/ops/tensor_parallel.h"

namespace flashmorph {
namespace {

at::Tensor trainable(const at::Tensor& weight) {
  return weight.defined() ? weight.detach().clone().set_requires_grad(true) : weight;
}

WholeBias trainable(const WholeBias& bias) { return {trainable(bias.value), bias.is_added}; }

AttentionWeights trainable(const AttentionWeights& w) {
  return {trainable(w.q),      trainable(w.k),      trainable(w.v),      trainable(w.o),
          trainable(w.q_norm), trainable(w.k_norm), trainable(w.q_bias), trainable(w.k_bias),
          trainable(w.v_bias), w.kv_replicas,       trainable(w.o_bias), w.rotates};
}

MlpWeights trainable(const MlpWeights& w) {
  return {trainable(w.gate),      trainable(w.up),      trainable(w.down),
          trainable(w.gate_bias), trainable(w.up_bias), trainable(w.down_bias)};
}

BlockWeights trainable(const BlockWeights& w) {
  BlockWeights copy{trainable(w.input_norm), trainable(w.post_norm), trainable(w.mlp), std::nullopt};
  if (!w.experts) return copy;
  copy.experts.emplace().router = trainable(w.experts->router);
  for (const MlpWeights& expert : w.experts->experts) copy.experts->experts.push_back(trainable(expert));
  return copy;
}

void append(Parameters& all, const Parameters& more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace

Routes routes_that_keep(const std::vector<int64_t>& full_layers, int64_t layers) {
  Routes routes(static_cast<size_t>(layers), Route::linear());
  for (const int64_t layer : full_layers) routes.at(static_cast<size_t>(layer)) = Route::full();
  return routes;
}

MorphableModel MorphableModel::load(const ModelFiles& files, const ModelSpec& spec, const Placement& placement,
                                    Shard& shard) {
  return load(files, spec, placement, shard, {0, spec.layers}, PipelinePeers::none());
}

MorphableModel MorphableModel::load(const ModelFiles& files, const ModelSpec& spec, const Placement& placement,
                                    Shard& shard, LayerRange layers, PipelinePeers& pipeline_peers) {
  return load_hybrid(files, spec, {}, std::vector<bool>(static_cast<size_t>(spec.layers), true), placement, shard,
                     layers, pipeline_peers);
}

MorphableModel MorphableModel::load_hybrid(const ModelFiles& files, const ModelSpec& spec, const MixerSection& mixer,
                                           const std::vector<bool>& full, const Placement& placement, Shard& shard,
                                           LayerRange layers, PipelinePeers& pipeline_peers) {
  TORCH_CHECK(0 <= layers.first && layers.first < layers.last && layers.last <= spec.layers, "layers [", layers.first,
              ", ", layers.last, ") of a model of ", spec.layers);
  MorphableModel model(spec, placement, shard, layers, pipeline_peers);
  if (model.has_embedding()) model.embedding_ = load_embedding(files, spec, placement);
  for (int64_t l = layers.first; l < layers.last; ++l) {
    MorphableLayer& layer =
        model.layers_.emplace_back(MorphableLayer{load_block(files, spec, l, placement), {}, nullptr});
    if (full.at(static_cast<size_t>(l))) {
      layer.attention = load_attention(files, spec, l, placement);
    } else {
      layer.branch = make_blank_branch({spec, mixer, l, /*seed=*/0, placement, shard});
      read_into(layer.branch->parameters(), files, placement);
    }
  }
  if (model.has_head()) {
    const EmbeddingWeights tied =
        model.has_embedding() || !spec.tied_embeddings ? model.embedding_ : load_embedding(files, spec, placement);
    model.head_ = load_head(files, spec, placement, spec.tied_embeddings ? &tied : nullptr);
  }
  return model;
}

MorphableModel MorphableModel::assemble(const ModelSpec& spec, const Placement& placement, Shard& shard,
                                        EmbeddingWeights embedding, std::vector<MorphableLayer> layers,
                                        HeadWeights head) {
  TORCH_CHECK(static_cast<int64_t>(layers.size()) == spec.layers, layers.size(), " layers of ", spec.layers);
  MorphableModel model(spec, placement, shard, {0, spec.layers}, PipelinePeers::none());
  model.embedding_ = std::move(embedding);
  model.layers_ = std::move(layers);
  model.head_ = std::move(head);
  return model;
}

const MorphableLayer& MorphableModel::layer(int64_t index) const {
  TORCH_CHECK(own_.first <= index && index < own_.last, "layer ", index, " is not in [", own_.first, ", ", own_.last,
              ")");
  return layers_[index - own_.first];
}

void MorphableModel::add_branches(const MixerSection& mixer, int64_t seed) {
  for (int64_t l = own_.first; l < own_.last; ++l)
    layers_[l - own_.first].branch = make_branch({spec_, mixer, l, seed, placement_, *shard_}, *layer(l).attention);
}

void MorphableModel::check_routes(const Routes& routes) const {
  TORCH_CHECK(static_cast<int64_t>(routes.size()) == layer_count(), "one route a layer: ", routes.size(), " for ",
              layer_count(), " layers");
}

MorphableModel MorphableModel::hybrid(const Routes& routes) const {
  check_routes(routes);
  MorphableModel copy(spec_, placement_, *shard_, own_, *pipeline_peers_);
  copy.embedding_ = {trainable(embedding_.tokens), embedding_.multiplier};
  for (int64_t l = own_.first; l < own_.last; ++l) {
    const MorphableLayer& source = layer(l);
    MorphableLayer kept{trainable(source.block), std::nullopt, nullptr};
    if (routes[l].kind == Route::Kind::full) {
      kept.attention = trainable(*source.attention);
    } else {
      TORCH_CHECK(routes[l].kind == Route::Kind::linear, "a hybrid's layer has one attention, layer ", l, " is mixed");
      kept.branch = source.branch->clone();
      for (const Parameter& parameter : kept.branch->parameters()) parameter.value.set_requires_grad(true);
    }
    copy.layers_.push_back(std::move(kept));
  }
  const bool tied_here = spec_.tied_embeddings && has_embedding();
  copy.head_.norm = trainable(head_.norm);
  copy.head_.output = tied_here && has_head() ? copy.embedding_.tokens : trainable(head_.output);
  return copy;
}

at::Tensor MorphableModel::embed(const at::Tensor& tokens_BT) const {
  return StateWatch::seen(*this, -1, "the embedding", flashmorph::embed(tokens_BT, embedding_, *shard_));
}

at::Tensor MorphableModel::normed_input(int64_t layer, const at::Tensor& x) const {
  return start_read(Sublayer::attention(layer), x).here();
}

at::Tensor MorphableModel::full_attention(int64_t layer, const at::Tensor& normed, const Positions& positions,
                                          LayerCache* cache) const {
  const MorphableLayer& here = this->layer(layer);
  TORCH_CHECK(here.attention, "layer ", layer, " has no full attention");
  return StateWatch::seen(*this, layer, "full attention",
                          flashmorph::full_attention(normed, *here.attention, spec_, positions, cache));
}

at::Tensor MorphableModel::linear_attention(int64_t layer, const at::Tensor& normed, const Positions& positions,
                                            LayerCache* cache) const {
  const MorphableLayer& here = this->layer(layer);
  TORCH_CHECK(here.branch, "layer ", layer, " has no linear branch");
  return StateWatch::seen(*this, layer, "the linear branch", here.branch->forward(normed, positions, cache));
}

at::Tensor MorphableModel::attend(int64_t layer, const at::Tensor& x, const Route& route, const Positions& positions,
                                  LayerCache* cache) const {
  const at::Tensor part = attention_part(layer, normed_input(layer, x), route, positions, cache);
  return after(Sublayer::attention(layer), x, out_of_shards(part, *shard_));
}

at::Tensor MorphableModel::feed_forward(int64_t layer, const at::Tensor& h) const {
  const Sublayer here = Sublayer::feed_forward(layer);
  const at::Tensor part = feed_forward_part(layer, start_read(here, h).here());
  return after(here, h, out_of_shards(part, *shard_));
}

const at::Tensor& MorphableModel::norm_of(Sublayer sublayer) const {
  const BlockWeights& block = this->layer(sublayer.layer()).block;
  return sublayer.is_attention() ? block.input_norm : block.post_norm;
}

Arriving MorphableModel::start_read(Sublayer sublayer, const at::Tensor& x) const {
  return on_its_way(sublayer, read_by_sublayer(x, norm_of(sublayer), spec_));
}

Arriving MorphableModel::on_its_way(Sublayer sublayer, const at::Tensor& own_normed) const {
  Arriving read = start_into_shards(own_normed, *shard_);
  if (!sublayer.is_attention()) return read;
  return std::move(read).then([this, sublayer](const at::Tensor& normed) {
    return StateWatch::seen(*this, sublayer.layer(), "the normed input", normed);
  });
}

at::Tensor MorphableModel::attention_part(int64_t layer, const at::Tensor& normed, const Route& route,
                                          const Positions& positions, LayerCache* cache) const {
  TORCH_CHECK(cache == nullptr || !positions.documents, "packed documents do not continue a cache");
  const auto full = [&] { return full_attention(layer, normed, positions, cache); };
  const auto linear = [&] { return linear_attention(layer, normed, positions, cache); };
  switch (route.kind) {
    case Route::Kind::full:
      return full();
    case Route::Kind::linear:
      return linear();
    case Route::Kind::mixed:
      return gate_mix(full(), linear(), route.alpha, route.value);
  }
  TORCH_CHECK(false, "no such route");
}

at::Tensor MorphableModel::feed_forward_part(int64_t layer, const at::Tensor& normed) const {
  return flashmorph::feed_forward(normed, this->layer(layer).block, spec_);
}

at::Tensor MorphableModel::after(Sublayer sublayer, const at::Tensor& x, const at::Tensor& sum) const {
  return seen_behind(sublayer, with_sublayer(x, sum, norm_of(sublayer), spec_));
}

MorphableModel::Onward MorphableModel::onward_from(Sublayer sublayer, const at::Tensor& x,
                                                   const at::Tensor& sum) const {
  const Sublayer next{sublayer.number + 1};
  const auto [states, read] = with_sublayer_and_read(x, sum, norm_of(sublayer), norm_of(next), spec_);
  return {seen_behind(sublayer, states), on_its_way(next, read)};
}

at::Tensor MorphableModel::seen_behind(Sublayer sublayer, const at::Tensor& states) const {
  const char* piece = sublayer.is_attention() ? "the states behind its attention" : "the feed-forward's output";
  return StateWatch::seen(*this, sublayer.layer(), piece, states);
}

at::Tensor MorphableModel::final_hidden(const at::Tensor& x) const {
  return StateWatch::seen(*this, -1, "the final norm", all_tokens(read_by_head(x, head_, spec_), *shard_));
}

at::Tensor MorphableModel::through_layers(at::Tensor x, const Routes& routes, const Positions& positions,
                                          std::vector<LayerCache>* caches) const {
  check_routes(routes);
  TORCH_CHECK(caches == nullptr || static_cast<int64_t>(caches->size()) == layer_count(), "one cache a layer");
  for (int64_t l = own_.first; l < own_.last; ++l)
    x = feed_forward(l, attend(l, x, routes[l], positions, caches != nullptr ? &(*caches)[l] : nullptr));
  return x;
}

at::Tensor MorphableModel::forward(const at::Tensor& tokens_BT, const Routes& routes, const Positions& positions,
                                   std::vector<LayerCache>* caches) const {
  at::Tensor x;
  if (has_embedding()) {
    x = embed(tokens_BT);
  } else {
    x = at::empty({tokens_BT.size(0), shard_->own_count(tokens_BT.size(1)), spec_.hidden},
                  at::TensorOptions(placement_.dtype).device(placement_.device));
    pipeline_peers_->receive(x);
  }
  x = through_layers(x, routes, positions, caches);
  if (has_head()) return final_hidden(x);
  pipeline_peers_->send(x.detach());
  return {};
}

Positions MorphableModel::positions(int64_t start, int64_t length, const std::optional<at::Tensor>& documents) const {
  return positions_of(spec_, start, length, placement_, documents);
}

Parameters MorphableModel::frozen_parameters() const {
  Parameters all = embedding_parameters();
  for (int64_t l = own_.first; l < own_.last; ++l) {
    if (layer(l).attention) append(all, parameters_of(*layer(l).attention, l));
    append(all, parameters_of(layer(l).block, l));
  }
  append(all, head_parameters());
  if (shard_->sequence_parallel())  // then a norm, whole on every rank, sees a part of them
    for (Parameter& parameter : all) parameter.partial_gradient |= parameter.split == Split::none;
  return all;
}

std::vector<at::Tensor> MorphableModel::weights_of(int64_t layer) const {
  const MorphableLayer& here = this->layer(layer);
  Parameters all = parameters_of(here.block, layer);
  if (here.attention) append(all, parameters_of(*here.attention, layer));
  if (here.branch) append(all, here.branch->parameters());
  return values_of(all);
}

Parameters MorphableModel::embedding_parameters() const {
  if (!has_embedding()) return {};
  Parameters parameters = parameters_of(embedding_);
  for (Parameter& parameter : parameters) parameter.tied_over_pipeline = spec_.tied_embeddings && !has_head();
  return parameters;
}

Parameters MorphableModel::head_parameters() const {
  if (!has_head()) return {};
  Parameters parameters = parameters_of(head_, spec_.tied_embeddings);
  if (spec_.tied_embeddings && !has_embedding()) {
    append(parameters, parameters_of(EmbeddingWeights{head_.output}));
    parameters.back().tied_over_pipeline = true;
  }
  return parameters;
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
