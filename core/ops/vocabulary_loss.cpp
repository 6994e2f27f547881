#include "core/ops/vocabulary_loss.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/ops/operator.h"
#include "core/ops/projection.h"

// Letters: N tokens, D hidden, W this rank's rows of the vocabulary.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;

constexpr int64_t kIgnored = -100;  // the target of a token that does not count

// a b, summed and given in float32 at least.
at::Tensor exact_product(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType exact = at::toOpMathType(a.scalar_type());
  if (exact == a.scalar_type()) return product(a, b);
  return a.is_cpu() ? at::mm(a.to(exact), b.to(exact)) : at::mm(a, b, exact);
}

// sum += a b, likewise, on a card inside the product.
void add_exact_product(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
  if (a.is_cpu() || a.scalar_type() == sum.scalar_type()) return void(sum.add_(exact_product(a, b)));
  at::addmm_out(sum, sum, a, b, sum.scalar_type());
}

// Of rows of logits, in float64 [.., N]: what their softmax is made of, m = max z and s = sum exp(z - m); with a
// teacher's logits y beside them m of z, m of y, s of z, s of y and c = sum exp(y - m) (y - z).
constexpr int64_t kOfOne = 2, kOfTwo = 5;
constexpr int64_t kBlock = 1 << 18;  // numbers that stay in a CPU's cache from one pass to the next

using Sums = at::Tensor(const at::Tensor& logits, const OptionalTensor& teacher);
using Gradient = at::Tensor(const at::Tensor& logits, const OptionalTensor& teacher, const OptionalTensor& column,
                            const at::Tensor& sums, at::ScalarType dtype);

// Calls work(first, count) for blocks of rows.
template <class Work>
void in_blocks(const at::Tensor& logits_NW, const Work& work) {
  const int64_t rows = logits_NW.size(0), at_once = std::max<int64_t>(1, kBlock / logits_NW.size(1));
  for (int64_t first = 0; first < rows; first += at_once) work(first, std::min(at_once, rows - first));
}

at::Tensor softmax_sums(const at::Tensor& logits_NW, const OptionalTensor& teacher_NW) {
  at::Tensor sums =
      at::empty({teacher_NW ? kOfTwo : kOfOne, logits_NW.size(0)}, logits_NW.options().dtype(at::kDouble));
  in_blocks(logits_NW, [&](int64_t first, int64_t count) {
    const at::Tensor z = logits_NW.narrow(0, first, count), m = z.amax(1, /*keepdim=*/true);
    std::vector<at::Tensor> rows = {m.squeeze(1), (z - m).exp_().sum(1)};
    if (teacher_NW) {
      const at::Tensor y = teacher_NW->narrow(0, first, count), m_y = y.amax(1, /*keepdim=*/true);
      at::Tensor power = (y - m_y).exp_();
      rows = {rows[0], m_y.squeeze(1), rows[1], power.sum(1), power.mul_(y - z).sum(1)};
    }
    sums.narrow(1, first, count).copy_(at::stack(rows));
  });
  return sums;
}

// softmax(z) minus softmax(y), or minus one at a row's column, in `dtype`. A column is -1 where it is another rank's;
// kIgnored: that row's gradient is zero.
at::Tensor softmax_gradient(const at::Tensor& logits_NW, const OptionalTensor& teacher_NW,
                            const OptionalTensor& column_N, const at::Tensor& sums, at::ScalarType dtype) {
  at::Tensor gradient = at::empty(logits_NW.sizes(), logits_NW.options().dtype(dtype));
  in_blocks(logits_NW, [&](int64_t first, int64_t count) {
    const at::Tensor here = sums.narrow(1, first, count).to(logits_NW.scalar_type()).unsqueeze(2);
    const auto share = [&](const at::Tensor& z_NW, int64_t max, int64_t sum) {
      return (z_NW.narrow(0, first, count) - here[max]).exp_().div_(here[sum]);
    };
    at::Tensor d = share(logits_NW, 0, teacher_NW ? 2 : 1);
    if (teacher_NW) d.sub_(share(*teacher_NW, 1, 3));
    if (column_N) {
      const at::Tensor column = column_N->narrow(0, first, count).unsqueeze(1);
      d.scatter_add_(1, column.clamp_min(0), -column.ge(0).to(d.scalar_type()));
      d.masked_fill_(column.eq(kIgnored), 0);
    }
    gradient.narrow(0, first, count).copy_(d);
  });
  return gradient;
}

// Without values: what the kernels allocate.
at::Tensor sums_without_values(const at::Tensor& logits_NW, const OptionalTensor& teacher_NW) {
  return at::empty({teacher_NW ? kOfTwo : kOfOne, logits_NW.size(0)}, logits_NW.options().dtype(at::kDouble));
}

at::Tensor gradient_without_values(const at::Tensor& logits_NW, const OptionalTensor&, const OptionalTensor&,
                                   const at::Tensor&, at::ScalarType dtype) {
  return at::empty(logits_NW.sizes(), logits_NW.options().dtype(dtype));
}

template <class... Argument>
at::Tensor call_sums(const Argument&... argument) {
  static const auto op = detail::find<Sums>("softmax_sums");
  return op.call(argument...);
}

template <class... Argument>
at::Tensor call_gradient(const Argument&... argument) {
  static const auto op = detail::find<Gradient>("softmax_gradient");
  return op.call(argument...);
}

// A shard's sums (their first rows are `maxima`), and more rows to add up, of the whole vocabulary. `relative` is of
// the rows behind the maxima the maximum that each is relative to.
at::Tensor over_vocabulary(const at::Tensor& sums, at::IntArrayRef relative, const at::Tensor& added, Shard& shard) {
  if (shard.size() == 1) return added.defined() ? at::cat({sums, added}) : sums;
  const auto count = static_cast<int64_t>(relative.size());
  const at::Tensor own = sums.narrow(0, 0, sums.size(0) - count);
  at::Tensor largest = own.clone();
  shard.all_reduce_max(largest);
  const at::Tensor scale = (own - largest).exp_();
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < count; ++i) rows.push_back(sums[own.size(0) + i] * scale[relative[i]]);
  at::Tensor whole = at::stack(rows);
  if (added.defined()) whole = at::cat({whole, added});
  shard.all_reduce_sum(whole);
  return at::cat({largest, whole});
}

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

// What a chunk of tokens comes to.
struct Chunk {
  at::Tensor sums;         // of the whole vocabulary
  at::Tensor d_logits_NW;  // the loss's, in the hidden states' dtype; undefined when no gradient is wanted
};

// The loss of all tokens' sums and its gradients; the logits of one chunk live at a time, so their gradient is used at
// once.
template <class OfChunk, class LossOf>
std::pair<at::Tensor, Gradients> chunked_loss(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard,
                                              int64_t chunk, Wanted wanted, OfChunk of_chunk, LossOf loss_of) {
  RECORD_USER_SCOPE(kVocabularyScope);
  const auto exact = hidden_ND.options().dtype(at::toOpMathType(hidden_ND.scalar_type())).requires_grad(false);
  std::vector<at::Tensor> sums;
  Gradients gradients;
  if (wanted.hidden) gradients.hidden = at::empty_like(hidden_ND);
  if (wanted.head) gradients.head = at::zeros(head_WD.sizes(), exact);
  for (int64_t start = 0; start < hidden_ND.size(0); start += chunk) {
    const int64_t count = std::min(chunk, hidden_ND.size(0) - start);
    const at::Tensor hidden = hidden_ND.narrow(0, start, count);
    const Chunk part = of_chunk(exact_product(hidden, head_WD.t()), start, count);
    sums.push_back(part.sums);
    if (wanted.hidden) gradients.hidden.narrow(0, start, count).copy_(product(part.d_logits_NW, head_WD));
    if (wanted.head) add_exact_product(gradients.head, part.d_logits_NW.t(), hidden);
  }
  const at::Tensor loss = sums.empty() ? at::zeros({}, exact) : loss_of(at::cat(sums, 1)).to(exact.dtype());
  if (wanted.hidden) shard.all_reduce_sum(gradients.hidden);
  if (wanted.head) gradients.head = gradients.head.to(head_WD.scalar_type());
  return {loss, gradients};
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
    const auto of_chunk = [&](const at::Tensor& student, int64_t start, int64_t count) -> Chunk {
      const at::Tensor teacher = exact_product(teacher_hidden.narrow(0, start, count), teacher_head.t());
      const at::Tensor sums = over_vocabulary(call_sums(student, teacher), {0, 1, 1}, {}, *shard);
      if (!wanted.any()) return {sums, {}};
      return {sums, call_gradient(student, teacher, std::nullopt, sums, student_hidden.scalar_type())};
    };
    // sum p_y (log p_y - log p_z) = c / s_y - (m_y + log s_y) + (m_z + log s_z)
    const auto loss_of = [](const at::Tensor& sums) {
      const std::vector<at::Tensor> row = sums.unbind();
      return (row[4] / row[3] - (row[1] - row[0]) - (row[3] / row[2]).log()).sum();
    };
    auto [loss, gradients] = chunked_loss(student_hidden, student_head, *shard, chunk, wanted, of_chunk, loss_of);
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
    const int64_t first = shard->rank() * head.size(0);
    const at::Tensor elsewhere = targets.lt(first).logical_or(targets.ge(first + head.size(0)));
    const at::Tensor counts = targets.ne(kIgnored);
    const at::Tensor columns = at::where(elsewhere, -1, targets - first).masked_fill_(~counts, kIgnored);
    const auto of_chunk = [&](const at::Tensor& logits, int64_t start, int64_t count) -> Chunk {
      const at::Tensor column = columns.narrow(0, start, count);
      const at::Tensor at_target =
          logits.gather(1, column.clamp_min(0).unsqueeze(1)).t().to(at::kDouble).masked_fill_(column.lt(0), 0);
      const at::Tensor sums = over_vocabulary(call_sums(logits, std::nullopt), {0}, at_target, *shard);
      if (!wanted.any()) return {sums, {}};
      return {sums, call_gradient(logits, std::nullopt, column, sums, hidden.scalar_type())};
    };
    const auto loss_of = [&](const at::Tensor& sums) {
      const std::vector<at::Tensor> row = sums.unbind();
      return (row[0] + row[1].log() - row[2]).masked_fill_(~counts, 0).sum();
    };
    auto [loss, gradients] = chunked_loss(hidden, head, *shard, chunk, wanted, of_chunk, loss_of);
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

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("softmax_sums(Tensor logits, Tensor? teacher) -> Tensor");
  library.def(
      "softmax_gradient(Tensor logits, Tensor? teacher, Tensor? column, Tensor sums, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("softmax_sums", softmax_sums);
  library.impl("softmax_gradient", softmax_gradient);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("softmax_sums", sums_without_values);
  library.impl("softmax_gradient", gradient_without_values);
}

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
