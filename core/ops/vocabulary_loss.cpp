#include "core/ops/vocabulary_loss.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

// Letters: N tokens, D hidden, W this rank's rows of the vocabulary.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// log softmax over the whole vocabulary of this rank's logits.
at::Tensor log_softmax(const at::Tensor& logits_NW, Shard& shard) {
  at::Tensor largest = std::get<0>(logits_NW.max(1, /*keepdim=*/true));
  shard.all_reduce_max(largest);
  const at::Tensor shifted = logits_NW - largest;
  at::Tensor sum = shifted.exp().sum(1, /*keepdim=*/true);
  shard.all_reduce_sum(sum);
  return shifted - sum.log();
}

// The loss of a chunk of tokens (this rank's part) and its gradient with respect to the chunk's logits.
struct ChunkLoss {
  at::Tensor loss;    // scalar
  at::Tensor d_logits_NW;
};

struct Gradients {
  at::Tensor hidden, head;
};

// Sums `chunk_loss` over chunks of tokens; the logits of one chunk live at a time, so their gradient is used at once.
template <class LossOfChunk>
std::pair<at::Tensor, Gradients> chunked_loss(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard,
                                              int64_t chunk, bool hidden_gradient, bool head_gradient,
                                              LossOfChunk chunk_loss) {
  at::Tensor loss = at::zeros({1}, hidden_ND.options());
  Gradients gradients;
  if (hidden_gradient) gradients.hidden = at::empty_like(hidden_ND);
  if (head_gradient) gradients.head = at::zeros_like(head_WD);
  for (int64_t start = 0; start < hidden_ND.size(0); start += chunk) {
    const int64_t count = std::min(chunk, hidden_ND.size(0) - start);
    const at::Tensor hidden = hidden_ND.narrow(0, start, count);
    const ChunkLoss part = chunk_loss(at::mm(hidden, head_WD.t()), start, count);
    loss += part.loss;
    if (hidden_gradient) gradients.hidden.narrow(0, start, count).copy_(at::mm(part.d_logits_NW, head_WD));
    if (head_gradient) gradients.head.addmm_(part.d_logits_NW.t(), hidden);
  }
  shard.all_reduce_sum(loss);
  if (hidden_gradient) shard.all_reduce_sum(gradients.hidden);
  return {loss.squeeze(0), gradients};
}

variable_list scaled(AutogradContext* context, const at::Tensor& gradient) {
  const variable_list saved = context->get_saved_variables();
  variable_list scaled;
  for (const at::Tensor& made : saved) scaled.push_back(made.defined() ? made * gradient : at::Tensor());
  return scaled;
}

struct KlDivergence : Function<KlDivergence> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& student_hidden, const at::Tensor& student_head,
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head, Shard* shard, int64_t chunk) {
    auto [loss, gradients] = chunked_loss(
        student_hidden, student_head, *shard, chunk, student_hidden.requires_grad(), student_head.requires_grad(),
        [&](const at::Tensor& logits, int64_t start, int64_t count) {
          const at::Tensor student = log_softmax(logits, *shard);
          const at::Tensor teacher =
              log_softmax(at::mm(teacher_hidden.narrow(0, start, count), teacher_head.t()), *shard);
          const at::Tensor probability = teacher.exp();
          return ChunkLoss{(probability * (teacher - student)).sum(), student.exp() - probability};
        });
    context->save_for_backward({gradients.hidden, gradients.head});
    return loss;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list made = scaled(context, gradients[0]);
    return {made[0], made[1], at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct CrossEntropy : Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& targets, Shard* shard, int64_t chunk) {
    const int64_t first = shard->rank() * head.size(0), rows = head.size(0);
    auto [loss, gradients] = chunked_loss(
        hidden, head, *shard, chunk, hidden.requires_grad(), head.requires_grad(),
        [&](const at::Tensor& logits, int64_t start, int64_t count) {
          const at::Tensor log_probability = log_softmax(logits, *shard);
          const at::Tensor target = targets.narrow(0, start, count);
          const at::Tensor counts = target.ne(-100).to(logits.scalar_type()).unsqueeze(1);
          const at::Tensor here = target.ge(first).logical_and(target.lt(first + rows));
          const at::Tensor column = (target - first).clamp(0, rows - 1).unsqueeze(1);
          const at::Tensor picked = here.to(logits.scalar_type()).unsqueeze(1);
          at::Tensor d_logits = log_probability.exp().mul_(counts);
          d_logits.scatter_add_(1, column, -picked);
          return ChunkLoss{-(log_probability.gather(1, column) * picked).sum(), d_logits};
        });
    context->save_for_backward({gradients.hidden, gradients.head});
    return loss;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list made = scaled(context, gradients[0]);
    return {made[0], made[1], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor kl_divergence(const at::Tensor& student_hidden_ND, const at::Tensor& student_head_WD,
                         const at::Tensor& teacher_hidden_ND, const at::Tensor& teacher_head_WD, Shard& shard,
                         int64_t chunk) {
  return KlDivergence::apply(student_hidden_ND, student_head_WD, teacher_hidden_ND.detach(), teacher_head_WD.detach(),
                             &shard, chunk);
}

at::Tensor cross_entropy(const at::Tensor& hidden_ND, const at::Tensor& head_WD, const at::Tensor& targets_N, Shard& shard,
                         int64_t chunk) {
  return CrossEntropy::apply(hidden_ND, head_WD, targets_N, &shard, chunk);
}

at::Tensor greedy_tokens(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard, int64_t chunk) {
  const c10::NoGradGuard no_gradient;
  const int64_t first = shard.rank() * head_WD.size(0);
  constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();
  std::vector<at::Tensor> tokens;
  for (int64_t start = 0; start < hidden_ND.size(0); start += chunk) {
    const at::Tensor hidden = hidden_ND.narrow(0, start, std::min(chunk, hidden_ND.size(0) - start));
    const auto [largest, column] = at::mm(hidden, head_WD.t()).max(1);
    at::Tensor best = largest.clone();
    shard.all_reduce_max(best);
    at::Tensor negated = at::where(largest == best, -(column + first), at::full({}, -kNowhere, column.options()));
    shard.all_reduce_max(negated);  // the smallest id among the ranks that hold the largest logit
    tokens.push_back(-negated);
  }
  return at::cat(tokens);
}

}  // namespace flashmorph
