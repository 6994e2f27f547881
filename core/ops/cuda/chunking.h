#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <vector>

#include "core/ops/cuda/lightning_kernels.h"

namespace flashmorph::cuda {

// Runs of tokens or chunks, and the table of them on the device.
struct Runs {
  at::Tensor numbers;  // what table points into
  ChunkTable table;
  std::vector<int64_t> first_runs;  // of each sequence, and their number at the end
};

// Tokens of the longest row or document.
int64_t longest_sequence(const at::Tensor& like_BTHD, const std::optional<at::Tensor>& documents_S1);

// How the tokens of a call lie in chunks, as linear_attention.h says of rows and documents: no chunk spans two
// sequences. Here the rows of a batch are sequences of one long row. Letters: B batch, T tokens, H heads, D any width,
// N chunks, C tokens a chunk, S sequences, K key dim, V value dim.
class Chunking {
 public:
  // documents_S1: offsets on the CPU; without them each row is a sequence. `fit`: where all sequences are shorter, so
  // are the chunks. Never waits for the device.
  Chunking(const at::Tensor& like_BTHD, int64_t chunk, const std::optional<at::Tensor>& documents_S1, bool fit = true);

  // In chunks, dense [N, H, C, D], zeros after a sequence's last token.
  at::Tensor packed(const at::Tensor& x_BTHD) const;
  // As it is, and with its rows scaled.
  std::pair<at::Tensor, at::Tensor> packed(const at::Tensor& x_BTHD, const at::Tensor& log_decay_H, Decay decay) const;
  at::Tensor unpacked(const at::Tensor& x_NHCD) const;  // -> [B, T, H, D]

  const ChunkTable& table() const { return runs_->table; }
  int64_t chunks() const { return table().chunks; }
  int64_t size() const { return table().size; }
  int64_t sequences() const { return table().sequences; }
  const std::vector<int64_t>& first_chunks() const { return runs_->first_runs; }  // of each sequence, and N at the end

 private:
  void pack_into(const at::Tensor& x_BTHD, const double* log_decay_H, Decay decay, at::Tensor* plain,
                 at::Tensor* scaled) const;

  int64_t batch_, tokens_;
  std::shared_ptr<const Runs> runs_;
};

// Runs of a sequence's chunks, at most `most` each. The table counts in chunks: start_N is a segment's first.
class Segments {
 public:
  Segments(const Chunking& chunks, int64_t most, at::Device device);
  const ChunkTable& table() const { return runs_->table; }

 private:
  std::shared_ptr<const Runs> runs_;
};

}  // namespace flashmorph::cuda
