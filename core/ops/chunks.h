#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace flashmorph {

// What a factor below this contributes is zero in any dtype; a bound keeps -inf out of differences and products.
inline constexpr double kForgotten = -750.0;

// How the tokens of a linear-attention call lie in chunks. The rows of a batch are cut alike; packed documents are cut
// one by one, so that no chunk spans two of them. A sequence's last chunk may be shorter: zeros fill it up. Letters: B
// batch, T tokens, H heads, D any width, N chunks, C tokens a chunk, S sequences, K key dim, V value dim.
class Chunks {
 public:
  Chunks(int64_t batch, int64_t tokens, int64_t chunk, const std::optional<at::Tensor>& documents);

  at::Tensor split(const at::Tensor& x_BTHD) const;                      // any strides -> contiguous [B, H, N, C, D]
  at::Tensor join(const at::Tensor& x_BHNCD) const;                      // -> [B, T, H, D]
  int64_t count() const { return static_cast<int64_t>(spans_.size()); }  // N
  int64_t size() const { return size_; }                                 // C
  int64_t length(int64_t chunk) const { return spans_[chunk].length; }   // its tokens, without the filling

  // Walks the states over the chunks, from first to last or back. A sequence starts from its entry of start_SHKV (zero
  // when absent); advance(n, state_BHKV) takes the state over chunk n in place.
  // Returns the state at which the walk entered each chunk, [B, H, N, K, V], and those where it left the sequences, [S,
  // H, K, V].
  template <class Advance>
  std::pair<at::Tensor, at::Tensor> forwards(const std::optional<at::Tensor>& start_SHKV, at::Tensor like_BHKV,
                                             const Advance& advance) const {
    Walk walk(*this, start_SHKV, like_BHKV);
    for (int64_t n = 0; n < count(); ++n) {
      walk.enter(n, spans_[n].first);
      advance(n, walk.state_BHKV);
      walk.leave(n, spans_[n].last);
    }
    return {walk.entered_BHNKV, walk.ends_SHKV};
  }
  template <class Advance>
  std::pair<at::Tensor, at::Tensor> backwards(const std::optional<at::Tensor>& start_SHKV, at::Tensor like_BHKV,
                                              const Advance& advance) const {
    Walk walk(*this, start_SHKV, like_BHKV);
    for (int64_t n = count() - 1; n >= 0; --n) {
      walk.enter(n, spans_[n].last);
      advance(n, walk.state_BHKV);
      walk.leave(n, spans_[n].first);
    }
    return {walk.entered_BHNKV, walk.ends_SHKV};
  }

 private:
  struct Span {
    int64_t length;
    int64_t document;
    bool first, last;  // of its document
  };

  struct Walk {
    Walk(const Chunks& chunks, const std::optional<at::Tensor>& start_SHKV, const at::Tensor& like_BHKV);
    void enter(int64_t chunk, bool new_sequence);
    void leave(int64_t chunk, bool end_of_sequence);

    const Chunks& chunks;
    at::Tensor start_SHKV, state_BHKV, entered_BHNKV, ends_SHKV;
  };

  void cut(int64_t document, int64_t tokens);

  int64_t batch_, tokens_, size_;
  std::vector<Span> spans_;
  at::Tensor places_T;  // of packed documents: where each token lies among the N*C places
};

// [B, H, N, X, Y] -> [B*H*N, X, Y]
inline at::Tensor flat(const at::Tensor& x_BHNXY) { return x_BHNXY.flatten(0, 2); }

}  // namespace flashmorph
