#include "core/eval/decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

// What a cache holds beside the storage that all rows share.
constexpr at::Tensor LayerCache::*kStates[] = {&LayerCache::state_BHKV, &LayerCache::recent_BPC};
constexpr at::Tensor LayerCache::*kKept[] = {&LayerCache::keys_BPGK, &LayerCache::values_BPGK};

}  // namespace

LayerCache empty_cache(const MorphableModel& model, int64_t layer, const Route& route, int64_t rows, int64_t room) {
  LayerCache cache;
  if (route.kind == Route::Kind::linear) return cache;
  const Placement& placement = model.placement();
  const int64_t head_dim = model.spec().head_dim, kv_heads = model.layer(layer).attention->k.size(0) / head_dim;
  for (auto kept : kKept)  // zeros: what is masked counts 0 times, which would not help against a NaN
    cache.*kept =
        at::zeros({rows, room, kv_heads, head_dim}, at::TensorOptions(placement.dtype).device(placement.device));
  return cache;
}

Decoder::Decoder(const MorphableModel& model, const Routes& routes, int64_t rows, int64_t room, int64_t chunk)
    : model_(model), routes_(routes), room_(room), chunk_(chunk), storage_(static_cast<size_t>(model.layer_count())) {
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l)
    storage_[l] = empty_cache(model, l, routes[static_cast<size_t>(l)], rows, room);
  for (int64_t r = 0; r < rows; ++r) {
    Row& row =
        rows_.emplace_back(Row{.length = 0, .caches = std::vector<LayerCache>(storage_.size()), .hidden_1D = {}});
    for (size_t l = 0; l < storage_.size(); ++l)
      for (auto kept : kKept)
        if ((storage_[l].*kept).defined()) row.caches[l].*kept = (storage_[l].*kept).narrow(0, r, 1);
  }
}

void Decoder::read(int64_t row, const std::vector<int32_t>& tokens) {
  const c10::NoGradGuard no_gradient;
  Row& here = rows_.at(static_cast<size_t>(row));
  const auto count = static_cast<int64_t>(tokens.size());
  TORCH_CHECK(count > 0 && here.length + count <= room_, "row ", row, " reads ", count, " tokens after ", here.length,
              " with room for ", room_);
  const at::Tensor all_1T = at::tensor(tokens, at::kInt).to(at::kLong).unsqueeze(0);
  for (int64_t first = 0; first < count; first += chunk_) {
    const int64_t part = std::min(chunk_, count - first);
    const at::Tensor hidden =
        model_.forward(all_1T.narrow(1, first, part), routes_, model_.positions(here.length, part), &here.caches);
    here.length += part;
    if (model_.has_head()) here.hidden_1D = hidden.select(1, part - 1);
  }
}

std::vector<Decoder::Written> Decoder::write(const std::vector<int64_t>& most, const Ends& ends) {
  const c10::NoGradGuard no_gradient;
  std::vector<Written> written(rows_.size());
  std::vector<bool> writes(rows_.size());
  for (size_t r = 0; r < rows_.size(); ++r) writes[r] = most[r] > 0;
  if (std::ranges::count(writes, true) == 0) return written;

  at::Tensor hidden_BD;
  if (model_.has_head()) {
    std::vector<at::Tensor> rows;
    for (const Row& row : rows_) rows.push_back(row.hidden_1D);
    hidden_BD = at::cat(rows);
  }
  std::vector<LayerCache> caches = joined();
  while (true) {
    const at::Tensor next_B = likeliest(hidden_BD);
    for (size_t r = 0; r < rows_.size(); ++r) {
      if (!writes[r]) continue;
      const auto row = static_cast<int64_t>(r);
      written[r].push_back(static_cast<int32_t>(next_B[row].item<int64_t>()));
      writes[r] = static_cast<int64_t>(written[r].size()) < most[r] && !ends(row, written[r]);
      if (writes[r]) continue;
      leave(rows_[r], caches, row);
      if (model_.has_head()) rows_[r].hidden_1D = hidden_BD.narrow(0, row, 1).clone();
    }
    if (std::ranges::count(writes, true) == 0) return written;

    // A row that is done goes along; what it makes stands behind its tokens, where nobody looks.
    std::vector<int64_t> starts;
    for (const Row& row : rows_) starts.push_back(std::min(row.length, room_ - 1));
    const at::Tensor hidden = model_.forward(next_B.unsqueeze(1), routes_,
                                             positions_of_rows(model_.spec(), starts, model_.placement()), &caches);
    if (model_.has_head()) hidden_BD = hidden.select(1, 0);
    for (size_t r = 0; r < rows_.size(); ++r) rows_[r].length += writes[r];
  }
}

Decoder::Memory Decoder::memory() const {
  Memory memory;
  for (const Row& row : rows_)
    for (const LayerCache& cache : row.caches) {
      for (auto kept : kKept)
        if ((cache.*kept).defined())
          memory.kv_bytes += static_cast<int64_t>((cache.*kept).nbytes()) / room_ * row.length;
      for (auto state : kStates)
        if ((cache.*state).defined()) memory.state_bytes += static_cast<int64_t>((cache.*state).nbytes());
    }
  return memory;
}

// The rows' caches as one of all rows.
std::vector<LayerCache> Decoder::joined() const {
  std::vector<LayerCache> all = storage_;
  for (size_t l = 0; l < all.size(); ++l)
    for (auto state : kStates) {
      std::vector<at::Tensor> rows;
      for (const Row& row : rows_)
        if ((row.caches[l].*state).defined()) rows.push_back(row.caches[l].*state);
      if (!rows.empty()) all[l].*state = at::cat(rows);
    }
  return all;
}

// The row goes on alone with its states as they are now; later ones of all rows are not its own.
void Decoder::leave(Row& row, const std::vector<LayerCache>& joined, int64_t place) {
  for (size_t l = 0; l < joined.size(); ++l)
    for (auto state : kStates)
      if ((joined[l].*state).defined()) row.caches[l].*state = (joined[l].*state).narrow(0, place, 1).clone();
}

// On every rank of the pipeline, on the host.
at::Tensor Decoder::likeliest(const at::Tensor& hidden_BD) const {
  at::Tensor next_B = at::zeros({static_cast<int64_t>(rows_.size())}, at::kLong);
  if (model_.has_head()) next_B.copy_(greedy_tokens(hidden_BD, model_.head(), model_.shard()));
  model_.pipeline_peers().share_last(next_B);
  return next_B;
}

}  // namespace flashmorph
