#include "core/ops/vocabulary_loss.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/ops/projection.h"

// Letters: N tokens, D hidden, W this rank's rows of the vocabulary.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t kIgnored = -100;  // the target of a token that does not count

// a b, summed and given in float32 at least.
at::Tensor exact_product(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType exact = at::toOpMathType(a.scalar_type());
  if (exact == a.scalar_type()) return product(a, b);
  return a.is_cpu() ? at::mm(a.to(exact), b.to(exact)) : at::mm(a, b, exact);
}

// In place: logits -> log softmax over the whole vocabulary. What several logits of the same tokens reduce over the
// shard travels together.
void log_softmax_(at::TensorList logits_NW, Shard& shard) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& logits : logits_NW) parts.push_back(std::get<0>(logits.max(1, /*keepdim=*/true)));
  at::Tensor largest = at::stack(parts);
  shard.all_reduce_max(largest);

  parts.clear();
  for (size_t i = 0; i < logits_NW.size(); ++i)
    parts.push_back(logits_NW[i].sub_(largest[static_cast<int64_t>(i)]).exp().sum(1, /*keepdim=*/true));
  at::Tensor sum = at::stack(parts);
  shard.all_reduce_sum(sum);
  sum.log_();
  for (size_t i = 0; i < logits_NW.size(); ++i) logits_NW[i].sub_(sum[static_cast<int64_t>(i)]);
}

// The loss of a chunk of tokens (this rank's part) and its gradient with respect to the chunk's logits.
struct ChunkLoss {
  at::Tensor loss;         // scalar
  at::Tensor d_logits_NW;  // undefined when no gradient is wanted
};

// Grad mode is off inside a Function's forward, so this is asked outside.
struct Wanted {
  bool hidden, head;
  Wanted(const at::Tensor& hidden_ND, const at::Tensor& head_WD)
      : hidden(c10::GradMode::is_enabled() && hidden_ND.requires_grad()),
        head(c10::GradMode::is_enabled() && head_WD.requires_grad()) {}
  bool any() const { return hidden || head; }
};

struct Gradients {
  at::Tensor hidden, head;
};

// Sums `chunk_loss` over chunks of tokens; the logits of one chunk live at a time, so their gradient is used at once.
template <class LossOfChunk>
std::pair<at::Tensor, Gradients> chunked_loss(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard,
                                              int64_t chunk, Wanted wanted, LossOfChunk chunk_loss) {
  RECORD_USER_SCOPE(kVocabularyScope);
  const auto exact = hidden_ND.options().dtype(at::toOpMathType(hidden_ND.scalar_type())).requires_grad(false);
  at::Tensor loss = at::zeros({1}, exact);
  Gradients gradients;
  if (wanted.hidden) gradients.hidden = at::empty_like(hidden_ND);
  if (wanted.head) gradients.head = at::zeros(head_WD.sizes(), exact);
  for (int64_t start = 0; start < hidden_ND.size(0); start += chunk) {
    const int64_t count = std::min(chunk, hidden_ND.size(0) - start);
    const at::Tensor hidden = hidden_ND.narrow(0, start, count);
    const ChunkLoss part = chunk_loss(exact_product(hidden, head_WD.t()), start, count);
    loss += part.loss;
    if (!wanted.any()) continue;
    const at::Tensor d_logits = part.d_logits_NW.to(hidden.scalar_type());
    if (wanted.hidden) gradients.hidden.narrow(0, start, count).copy_(product(d_logits, head_WD));
    if (wanted.head) gradients.head.add_(exact_product(d_logits.t(), hidden));
  }
  shard.all_reduce_sum(loss);
  if (wanted.hidden) shard.all_reduce_sum(gradients.hidden);
  if (wanted.head) gradients.head = gradients.head.to(head_WD.scalar_type());
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
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head, Shard* shard,
                            int64_t chunk, Wanted wanted) {
    auto [loss, gradients] = chunked_loss(
        student_hidden, student_head, *shard, chunk, wanted, [&](at::Tensor student, int64_t start, int64_t count) {
          at::Tensor teacher = exact_product(teacher_hidden.narrow(0, start, count), teacher_head.t());
          log_softmax_({student, teacher}, *shard);
          const at::Tensor probability = teacher.exp();
          const at::Tensor loss_NW = teacher.sub_(student).mul_(probability);
          return ChunkLoss{loss_NW.sum(), wanted.any() ? student.exp_().sub_(probability) : at::Tensor()};
        });
    context->save_for_backward({gradients.hidden, gradients.head});
    return loss;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list made = scaled(context, gradients[0]);
    return {made[0], made[1], at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct CrossEntropy : Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& targets, Shard* shard, int64_t chunk, Wanted wanted) {
    const int64_t first = shard->rank() * head.size(0), rows = head.size(0);
    auto [loss, gradients] =
        chunked_loss(hidden, head, *shard, chunk, wanted, [&](at::Tensor logits, int64_t start, int64_t count) {
          log_softmax_({logits}, *shard);
          const at::Tensor target = targets.narrow(0, start, count).unsqueeze(1);
          const at::Tensor elsewhere = target.lt(first).logical_or(target.ge(first + rows));
          const at::Tensor column = (target - first).clamp(0, rows - 1);
          const at::Tensor chunk_loss = -logits.gather(1, column).masked_fill(elsewhere, 0).sum();
          if (!wanted.any()) return ChunkLoss{chunk_loss, {}};
          at::Tensor d_logits = logits.exp_().masked_fill_(target.eq(kIgnored), 0);
          d_logits.scatter_add_(1, column, elsewhere.to(logits.scalar_type()).sub_(1));
          return ChunkLoss{chunk_loss, d_logits};
        });
    context->save_for_backward({gradients.hidden, gradients.head});
    return loss;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list made = scaled(context, gradients[0]);
    return {made[0], made[1], at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

void check_shapes(const char* name, const at::Tensor& hidden_ND, const at::Tensor& head_WD, int64_t chunk) {
  TORCH_CHECK(hidden_ND.dim() == 2 && head_WD.dim() == 2 && hidden_ND.size(1) == head_WD.size(1), name,
              ": hidden must be [N, D] and head [W, D], got ", hidden_ND.sizes(), " and ", head_WD.sizes());
  TORCH_CHECK(chunk >= 1, name, ": a chunk has at least 1 token, got ", chunk);
}

}  // namespace

at::Tensor kl_divergence(const at::Tensor& student_hidden_ND, const at::Tensor& student_head_WD,
                         const at::Tensor& teacher_hidden_ND, const at::Tensor& teacher_head_WD, Shard& shard,
                         int64_t chunk) {
  check_shapes("kl_divergence (student)", student_hidden_ND, student_head_WD, chunk);
  check_shapes("kl_divergence (teacher)", teacher_hidden_ND, teacher_head_WD, chunk);
  TORCH_CHECK(
      student_hidden_ND.size(0) == teacher_hidden_ND.size(0) && student_head_WD.size(0) == teacher_head_WD.size(0),
      "kl_divergence: student and teacher must have the same tokens and vocabulary rows");
  return KlDivergence::apply(student_hidden_ND, student_head_WD, teacher_hidden_ND.detach(), teacher_head_WD.detach(),
                             &shard, chunk, Wanted(student_hidden_ND, student_head_WD));
}

at::Tensor cross_entropy(const at::Tensor& hidden_ND, const at::Tensor& head_WD, const at::Tensor& targets_N,
                         Shard& shard, int64_t chunk) {
  check_shapes("cross_entropy", hidden_ND, head_WD, chunk);
  const at::Tensor counted = targets_N.masked_select(targets_N.ne(kIgnored));
  TORCH_CHECK(targets_N.dim() == 1 && targets_N.size(0) == hidden_ND.size(0) && counted.ge(0).all().item<bool>() &&
                  counted.lt(head_WD.size(0) * shard.size()).all().item<bool>(),
              "cross_entropy: targets must be one id of the vocabulary, or ", kIgnored, ", a token");
  return CrossEntropy::apply(hidden_ND, head_WD, targets_N.to(hidden_ND.device()), &shard, chunk,
                             Wanted(hidden_ND, head_WD));
}

at::Tensor greedy_tokens(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard, int64_t chunk) {
  RECORD_USER_SCOPE(kVocabularyScope);
  const c10::NoGradGuard no_gradient;
  const int64_t first = shard.rank() * head_WD.size(0);
  constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();
  check_shapes("greedy_tokens", hidden_ND, head_WD, chunk);
  at::Tensor tokens = at::empty({hidden_ND.size(0)}, hidden_ND.options().dtype(at::kLong));
  for (int64_t start = 0; start < hidden_ND.size(0); start += chunk) {
    const int64_t count = std::min(chunk, hidden_ND.size(0) - start);
    const at::Tensor hidden = hidden_ND.narrow(0, start, count);
    const auto [largest, column] = exact_product(hidden, head_WD.t()).max(1);
    at::Tensor best = largest.clone();
    shard.all_reduce_max(best);
    at::Tensor negated = at::where(largest == best, -(column + first), at::full({}, -kNowhere, column.options()));
    shard.all_reduce_max(negated);  // the smallest id among the ranks that hold the largest logit
    tokens.narrow(0, start, count).copy_(negated.neg_());
  }
  return tokens;
}

}  // namespace flashmorph
