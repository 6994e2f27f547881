#include "distributed/parallel/pipeline.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/base/clock.h"
#include "distributed/parallel/pipeline_order.h"

namespace flashmorph {

std::vector<at::Tensor> Pipeline::forward_backward(MicroBatchRange micro_batches, const StateShape& shape,
                                                   bool with_teacher, const StageForward& forward) {
  const int64_t count = micro_batches.last - micro_batches.first;
  std::vector<at::Tensor> losses(count);
  std::map<int64_t, Held> held;
  for (const auto& [kind, m] : one_forward_one_backward(mesh_.shape().pipeline, mesh_.pipeline_rank(), count)) {
    if (kind == PipelineTask::Kind::forward) {
      const States input = receive_states(shape, with_teacher);
      const auto [states, loss] = forward(micro_batches.first + m, input);
      send_states(states);
      held[m] = {input.mixture, states.mixture, loss};
      if (loss.defined()) losses[m] = loss.detach();
    } else {
      backward(held.at(m), shape);
      held.erase(m);
    }
  }
  mesh_.pipeline().finish_sends();
  return losses;
}

void Pipeline::stream(MicroBatchRange micro_batches, const StateShape& shape, const StageStream& forward) {
  for (int64_t m = micro_batches.first; m < micro_batches.last; ++m)
    send_states({forward(m, is_first() ? at::Tensor() : receive(shape, mesh_.pipeline_rank() - 1)), {}});
  mesh_.pipeline().finish_sends();
}

States Pipeline::receive_states(const StateShape& shape, bool with_teacher) {
  if (is_first()) return {};
  const int64_t before = mesh_.pipeline_rank() - 1;
  if (!with_teacher) return {receive(shape, before).set_requires_grad(true), {}};
  StateShape stacked = shape;
  stacked.sizes.insert(stacked.sizes.begin(), 2);
  const at::Tensor both = receive(stacked, before);
  return {both[0].detach().set_requires_grad(true), both[1]};
}

at::Tensor Pipeline::receive(const StateShape& shape, int64_t from) {
  const Stopwatch watch;
  at::Tensor values = at::empty(shape.sizes, shape.options);
  mesh_.pipeline().receive(values, static_cast<int>(from));
  seconds_waited_ += watch.seconds();
  return values;
}

void Pipeline::send_states(const States& states) {
  if (is_last()) return;
  const at::Tensor mixture = states.mixture.detach();
  mesh_.pipeline().send_later(states.teacher.defined() ? at::stack({mixture, states.teacher}) : mixture.contiguous(),
                              static_cast<int>(mesh_.pipeline_rank() + 1));
}

// d(all losses) / d(what this rank has), from the loss made here and the gradient that the next rank sends back.
void Pipeline::backward(const Held& held, const StateShape& shape) {
  std::vector<at::Tensor> ends, gradients;
  if (held.loss.defined()) {
    ends.push_back(held.loss);
    gradients.push_back(at::ones_like(held.loss));
  }
  if (!is_last()) {
    ends.push_back(held.output);
    gradients.push_back(receive(shape, mesh_.pipeline_rank() + 1));
  }
  torch::autograd::backward(ends, gradients);
  if (is_first()) return;
  const at::Tensor& gradient = held.input.grad();
  mesh_.pipeline().send_later(gradient.defined() ? gradient.contiguous() : at::zeros(shape.sizes, shape.options),
                              static_cast<int>(mesh_.pipeline_rank() - 1));
}

}  // namespace flashmorph
