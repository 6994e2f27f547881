#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/morph/morphable_model.h"

namespace flashmorph {

// A layer's cache with room for so many tokens in each row, nothing read yet.
LayerCache empty_cache(const MorphableModel& model, int64_t layer, const Route& route, int64_t rows, int64_t room);

// Rows of tokens that a model reads and goes on with, each by its likeliest next token. A row is read alone, in chunks,
// into the caches (keys and values of full layers, states of linear ones); all rows write together. Rows may differ in
// length; each gets what it would alone. Every rank of a pipeline holds one and calls alike. Not differentiable.
class Decoder {
 public:
  static constexpr int64_t kChunk = 32768;  // tokens of a row in one forward

  // room: tokens that no row will exceed. Model and routes outlive this.
  Decoder(const MorphableModel& model, const Routes& routes, int64_t rows, int64_t room, int64_t chunk = kChunk);

  void read(int64_t row, const std::vector<int32_t>& tokens);  // one at least

  // What each row writes: at most most[row] tokens, the last of which, or the one at which `ends` says so, is not read
  // yet. A row of which 0 are asked is left as it is; the others have read something.
  using Written = std::vector<int32_t>;
  using Ends = std::function<bool(int64_t row, const Written& so_far)>;
  std::vector<Written> write(const std::vector<int64_t>& most, const Ends& ends);

  struct Memory {
    int64_t kv_bytes = 0;     // of the tokens read, keys and values
    int64_t state_bytes = 0;  // whatever the tokens
  };
  Memory memory() const;  // of this rank's layers

 private:
  struct Row {
    int64_t length = 0;  // tokens read
    std::vector<LayerCache> caches;
    at::Tensor hidden_1D;  // of the last token; where the head is
  };

  std::vector<LayerCache> joined() const;
  static void leave(Row& row, const std::vector<LayerCache>& joined, int64_t place);
  at::Tensor likeliest(const at::Tensor& hidden_BD) const;

  const MorphableModel& model_;
  const Routes& routes_;
  int64_t room_, chunk_;
  std::vector<LayerCache> storage_;  // of all rows: the keys and values
  std::vector<Row> rows_;
};

}  // namespace flashmorph
