#include "distributed/parallel/pipeline.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/base/clock.h"
#include "distributed/parallel/pipeline_order.h"

namespace flashmorph {

std::vector<at::Tensor> Pipeline::forward_backward(MicroBatchRange micro_batches, const StateShape& shape,
                                                   const StageForward& forward) {
  const int64_t count = micro_batches.last - micro_batches.first;
  std::vector<at::Tensor> losses(count);
  std::map<int64_t, Held> held;
  const bool puts_off = !is_first() || mesh_.shape().tensor > 1;  // others wait for this rank, or it for its shards
  const auto until = is_first() ? PutOffGradients::Until::shards_are_waited_for : PutOffGradients::Until::asked;
  for (const auto& [kind, m] : pipeline_order(mesh_.shape().pipeline, mesh_.pipeline_rank(), count)) {
    Held& here = held.try_emplace(m, until).first->second;
    switch (kind) {
      case PipelineTask::Kind::forward: {
        const PutOffGradients::Scope putting_off(puts_off ? &here.weights : nullptr);
        here.output = forward(micro_batches.first + m, states_of(here, shape));
        send_on(here.output.mixture);
        if (here.output.loss.defined()) losses[m] = here.output.loss.detach();
        break;
      }
      case PipelineTask::Kind::backward:
        backward(here, shape);
        here.input = at::Tensor();
        here.output = StageOutput();
        if (!is_first()) break;
        here.weights.work_out();
        held.erase(m);
        break;
      case PipelineTask::Kind::weights:
        here.weights.work_out();
        held.erase(m);
        break;
    }
  }
  mesh_.pipeline().finish_sends();
  return losses;
}

void Pipeline::stream(MicroBatchRange micro_batches, const StateShape& shape, const StageStream& forward) {
  for (int64_t m = micro_batches.first; m < micro_batches.last; ++m)
    forward(m, receive_states(shape), [this](const at::Tensor& states) { send_on(states); });
  mesh_.pipeline().finish_sends();
}

States Pipeline::states_of(Held& held, const StateShape& shape) {
  return {.teacher = [this, &shape] { return receive_states(shape); },
          .mixture =
              [this, &held, &shape] {
                held.input = receive_states(shape);
                if (held.input.defined()) held.input.set_requires_grad(true);
                return held.input;
              },
          .pass_teacher_on = [this](const at::Tensor& states) { send_on(states); }};
}

at::Tensor Pipeline::receive_states(const StateShape& shape) {
  return is_first() ? at::Tensor() : receive(shape, mesh_.pipeline_rank() - 1);
}

at::Tensor Pipeline::receive(const StateShape& shape, int64_t from) {
  const Stopwatch watch;
  at::Tensor values = at::empty(shape.sizes, shape.options);
  mesh_.pipeline().receive(values, static_cast<int>(from));
  seconds_waited_ += watch.seconds();
  return values;
}

void Pipeline::send_on(const at::Tensor& states) {
  if (!is_last())
    mesh_.pipeline().send_later(states.detach().contiguous(), static_cast<int>(mesh_.pipeline_rank() + 1));
}

// d(all losses) / d(what this rank has), from the loss made here and the gradient that the next rank sends back.
void Pipeline::backward(const Held& held, const StateShape& shape) {
  std::vector<at::Tensor> ends, gradients;
  if (held.output.loss.defined()) {
    ends.push_back(held.output.loss);
    gradients.push_back(at::ones_like(held.output.loss));
  }
  if (!is_last()) {
    ends.push_back(held.output.mixture);
    gradients.push_back(receive(shape, mesh_.pipeline_rank() + 1));
  }
  torch::autograd::backward(ends, gradients);
  if (is_first()) return;
  const at::Tensor& gradient = held.input.grad();
  mesh_.pipeline().send_later(gradient.defined() ? gradient.contiguous() : at::zeros(shape.sizes, shape.options),
                              static_cast<int>(mesh_.pipeline_rank() - 1));
}

}  // namespace flashmorph
