#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "core/ops/put_off_gradients.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

using PassOn = std::function<void(const at::Tensor& states)>;  // to the next rank; the last rank keeps them

// One micro-batch's states on their way through the pipeline, each [B, T, D]. The rank before sends the teacher's
// first, where there is a teacher, and the mixture's behind them: each is to be asked for once, in that order. They are
// undefined on the first rank, which starts from the tokens.
struct States {
  std::function<at::Tensor()> teacher = [] { return at::Tensor(); };  // without a gradient
  std::function<at::Tensor()> mixture = [] { return at::Tensor(); };  // gradients come back through them
  PassOn pass_teacher_on = [](const at::Tensor&) {};  // before this rank's part of the mixture is returned
};

struct StateShape {
  std::vector<int64_t> sizes;  // B, T, D
  at::TensorOptions options;
};

// One rank's part of a micro-batch.
struct StageOutput {
  at::Tensor mixture;  // the last rank's goes nowhere and may be undefined
  at::Tensor loss;     // this rank's part, a differentiable scalar; undefined when it has none
};

using StageForward = std::function<StageOutput(int64_t micro_batch, const States& states)>;
using StageStream = std::function<void(int64_t micro_batch, const at::Tensor& input, const PassOn& pass_on)>;

// The ranks of a pipeline group working on the micro-batches of a step. With one rank everything is local.
class Pipeline {
 public:
  explicit Pipeline(Mesh& mesh) : mesh_(mesh) {}

  // Forward and backward of these micro-batches in the order of pipeline_order; gradients add up in the leaves. Returns
  // each micro-batch's loss, detached (undefined where this rank has none).
  std::vector<at::Tensor> forward_backward(MicroBatchRange micro_batches, const StateShape& shape,
                                           const StageForward& forward);

  // Forward only: each micro-batch is passed on as soon as it is through here. No gradient crosses ranks.
  void stream(MicroBatchRange micro_batches, const StateShape& shape, const StageStream& forward);

  double seconds_waited() const { return seconds_waited_; }  // for other ranks' states and gradients, since the start

 private:
  struct Held {  // a micro-batch between its forward and its last task
    explicit Held(PutOffGradients::Until until) : weights(until) {}
    at::Tensor input;
    StageOutput output;
    PutOffGradients weights;
  };

  bool is_first() const { return mesh_.pipeline_rank() == 0; }
  bool is_last() const { return mesh_.pipeline_rank() == mesh_.shape().pipeline - 1; }
  States states_of(Held& held, const StateShape& shape);
  at::Tensor receive_states(const StateShape& shape);
  at::Tensor receive(const StateShape& shape, int64_t from);
  void send_on(const at::Tensor& states);
  void backward(const Held& held, const StateShape& shape);

  Mesh& mesh_;
  double seconds_waited_ = 0.0;
};

}  // namespace flashmorph
