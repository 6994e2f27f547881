#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "distributed/parallel/gradients.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

// What travels from one pipeline rank to the next for one micro-batch, each [B, T, D].
struct States {
  at::Tensor mixture;  // gradients come back through it
  at::Tensor teacher;  // goes along without (the teacher's states); undefined when nothing does
};

struct StateShape {
  std::vector<int64_t> sizes;  // B, T, D
  at::TensorOptions options;
};

// One rank's part of a micro-batch. The states of the last rank go nowhere and may be undefined.
struct StageOutput {
  States states;
  at::Tensor loss;  // this rank's part, a differentiable scalar; undefined when it has none
};

// `input` is undefined on the first rank, which starts from the tokens.
using StageForward = std::function<StageOutput(int64_t micro_batch, const States& input)>;
using StageStream = std::function<at::Tensor(int64_t micro_batch, const at::Tensor& input)>;

// The ranks of a pipeline group working on the micro-batches of a step. With one rank everything is local.
class Pipeline {
 public:
  explicit Pipeline(Mesh& mesh) : mesh_(mesh) {}

  // Forward and backward of these micro-batches in 1F1B order; gradients add up in the leaves. Returns each
  // micro-batch's loss, detached (undefined where this rank has none). `with_teacher`: fixed states travel too.
  std::vector<at::Tensor> forward_backward(MicroBatchRange micro_batches, const StateShape& shape, bool with_teacher,
                                           const StageForward& forward);

  // Forward only: each micro-batch goes on to the next rank as soon as it is through here. No gradient crosses ranks.
  void stream(MicroBatchRange micro_batches, const StateShape& shape, const StageStream& forward);

  double seconds_waited() const { return seconds_waited_; }  // for other ranks' states and gradients, since the start

 private:
  struct Held {  // a micro-batch between its forward and its backward
    at::Tensor input;
    at::Tensor output;
    at::Tensor loss;
  };

  bool is_first() const { return mesh_.pipeline_rank() == 0; }
  bool is_last() const { return mesh_.pipeline_rank() == mesh_.shape().pipeline - 1; }
  States receive_states(const StateShape& shape, bool with_teacher);
  at::Tensor receive(const StateShape& shape, int64_t from);
  void send_states(const States& states);
  void backward(const Held& held, const StateShape& shape);

  Mesh& mesh_;
  double seconds_waited_ = 0.0;
};

}  // namespace flashmorph
