#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "core/train/adamw.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// AdamW whose two moments are shared out over the data ranks (ZeRO stage 1, arXiv 1910.02054): the parameters, laid end
// to end, are cut into equal partitions; each rank updates its own and gathers the others. The update is elementwise,
// so the result is that of AdamW. Parameters have one dtype; a gradient counts in the rank's own partition only.
class DataShardedAdamW {
 public:
  DataShardedAdamW(std::vector<at::Tensor> parameters, const AdamW::Options& options, Communicator& data);
  void step(const std::vector<at::Tensor>& gradients, double learning_rate);

  int64_t state_elements() const { return 2 * own_elements_; }  // this rank's moments

  struct Piece {  // of a parameter, by flat elements
    size_t parameter;
    int64_t first;
    int64_t count;
  };
  std::vector<std::pair<Piece, AdamW::State>> states() const;  // this rank's, flat

  // This rank's states were overwritten with those after so many steps: every rank gets the parameters. Collective.
  void resume_at(int64_t steps);

 private:
  std::vector<at::Tensor> own_pieces(const std::vector<at::Tensor>& whole) const;
  void gather();

  std::vector<at::Tensor> parameters_;
  Communicator& data_;
  int64_t partition_;          // elements a rank; the last one's may be fewer
  std::vector<Piece> pieces_;  // this rank's
  int64_t own_elements_ = 0;
  AdamW optimizer_;
};

}  // namespace flashmorph
