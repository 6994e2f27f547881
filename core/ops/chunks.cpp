#include "core/ops/chunks.h"

#include <algorithm>

namespace flashmorph {

Chunks::Chunks(int64_t batch, int64_t tokens, int64_t chunk, const std::optional<at::Tensor>& documents)
    : batch_(batch), tokens_(tokens), size_(std::min(chunk, tokens)) {
  if (!documents) {
    cut(0, tokens);
    return;
  }
  const at::Tensor offsets = documents->contiguous();
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  at::Tensor places = at::empty({tokens}, at::kLong);
  int64_t* place = places.data_ptr<int64_t>();
  for (int64_t d = 0; d + 1 < offsets.size(0); ++d) {
    int64_t next = count() * size_;
    for (int64_t t = offset[d]; t < offset[d + 1]; ++t) *place++ = next++;
    cut(d, offset[d + 1] - offset[d]);
  }
  places_T = places;
}

void Chunks::cut(int64_t document, int64_t tokens) {
  for (int64_t first = 0; first < tokens; first += size_)
    spans_.push_back({std::min(size_, tokens - first), document, first == 0, first + size_ >= tokens});
}

at::Tensor Chunks::split(const at::Tensor& x_BTHD) const {
  const at::Tensor x = x_BTHD.transpose(1, 2);
  const int64_t places = count() * size_;
  if (!places_T.defined()) {
    const at::Tensor filled = places == tokens_ ? x : at::constant_pad_nd(x, {0, 0, 0, places - tokens_});
    return filled.contiguous().unflatten(2, {count(), size_});
  }
  const at::Tensor filled = at::zeros({x.size(0), x.size(1), places, x.size(3)}, x.options());
  filled.index_copy_(2, places_T, x);
  return filled.unflatten(2, {count(), size_});
}

at::Tensor Chunks::join(const at::Tensor& x_BHNCD) const {
  const at::Tensor x = x_BHNCD.flatten(2, 3);
  return (places_T.defined() ? x.index_select(2, places_T) : x.narrow(2, 0, tokens_)).transpose(1, 2);
}

// Without documents the whole batch walks as one: entry 0 of [1, B, H, K, V].
Chunks::Walk::Walk(const Chunks& chunks, const std::optional<at::Tensor>& start, const at::Tensor& like)
    : chunks(chunks), state_BHKV(at::empty_like(like, at::MemoryFormat::Contiguous)) {
  const int64_t documents = chunks.spans_.back().document + 1;
  const auto B = like.size(0), H = like.size(1), K = like.size(2), V = like.size(3);
  if (start) start_SHKV = start->to(like.scalar_type()).view({documents, B, H, K, V});
  entered_BHNKV = at::empty({B, H, chunks.count(), K, V}, like.options());
  ends_SHKV = at::empty({documents * B, H, K, V}, like.options());
}

void Chunks::Walk::enter(int64_t chunk, bool new_sequence) {
  if (new_sequence && start_SHKV.defined()) state_BHKV.copy_(start_SHKV[chunks.spans_[chunk].document]);
  if (new_sequence && !start_SHKV.defined()) state_BHKV.zero_();
  entered_BHNKV.select(2, chunk).copy_(state_BHKV);
}

void Chunks::Walk::leave(int64_t chunk, bool end_of_sequence) {
  const int64_t B = chunks.batch_;
  if (end_of_sequence) ends_SHKV.narrow(0, chunks.spans_[chunk].document * B, B).copy_(state_BHKV);
}

}  // namespace flashmorph
