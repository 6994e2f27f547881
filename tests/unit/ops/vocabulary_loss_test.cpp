#include "core/ops/vocabulary_loss.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include "tests/support/tensors.h"

// Letters: N tokens, D hidden, W vocabulary rows.

namespace flashmorph {
namespace {

using test::relative_error;

constexpr int64_t kTokens = 13, kHidden = 6, kRows = 30, kPieces = 2;

at::Tensor random_leaf(at::IntArrayRef shape) {
  return at::randn(shape, at::TensorOptions(at::kDouble)).set_requires_grad(true);
}

at::Tensor copied(const at::Tensor& x) { return x.detach().clone().set_requires_grad(x.requires_grad()); }

// A group of threads, one a rank, that reduce over shared memory; counts its reductions.
class ThreadShard : public Shard {
 public:
  struct Group {
    std::barrier<> meet{kPieces};
    std::vector<at::Tensor> values = std::vector<at::Tensor>(kPieces);
  };
  ThreadShard(Group& group, int rank) : group_(group), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return kPieces; }
  void all_reduce_sum(at::Tensor& values) override {
    reduce(values, [](const at::Tensor& a, const at::Tensor& b) { return a + b; });
  }
  void all_reduce_max(at::Tensor& values) override {
    reduce(values, [](const at::Tensor& a, const at::Tensor& b) { return at::maximum(a, b); });
  }
  int reductions = 0;

 private:
  template <class Combine>
  void reduce(at::Tensor& values, Combine combine) {
    ++reductions;
    group_.values[rank_] = values;
    group_.meet.arrive_and_wait();
    const at::Tensor all = combine(group_.values[0], group_.values[1]);
    group_.meet.arrive_and_wait();  // everyone has read before anyone writes
    values.copy_(all);
    group_.meet.arrive_and_wait();
  }
  Group& group_;
  int rank_;
};

void on_every_rank(const std::function<void(ThreadShard&)>& body) {
  ThreadShard::Group group;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kPieces; ++rank)
    threads.emplace_back([&, rank] {
      ThreadShard shard(group, rank);
      body(shard);
    });
  for (std::thread& thread : threads) thread.join();
}

at::Tensor rows_of(const at::Tensor& head, const Shard& shard) { return copied(head.chunk(kPieces, 0)[shard.rank()]); }

struct Case {
  at::Tensor hidden = random_leaf({kTokens, kHidden}), head = random_leaf({kRows, kHidden});
  at::Tensor teacher_hidden = at::randn({kTokens, 5}, at::kDouble), teacher_head = at::randn({kRows, 5}, at::kDouble);
  at::Tensor targets = at::randint(kRows, {kTokens}, at::kLong);
};

Case random_case() {
  at::manual_seed(2);
  Case made;
  made.targets[4].fill_(-100);
  made.targets[0].fill_(0);
  made.targets[1].fill_(kRows / 2 - 1);  // the last row of rank 0 and the first of rank 1
  made.targets[2].fill_(kRows / 2);
  made.targets[3].fill_(kRows - 1);
  return made;
}

// A loss with its definition, so that every property below is asked of both.
struct Loss {
  const char* name;
  std::function<at::Tensor(const Case&, const at::Tensor& hidden, const at::Tensor& head)> definition;
  std::function<at::Tensor(const Case&, const at::Tensor& hidden, const at::Tensor& head, Shard&, int64_t chunk)> ours;
};

const Loss kLosses[] = {
    {"cross entropy",
     [](const Case& in, const at::Tensor& hidden, const at::Tensor& head) {
       const at::Tensor log_p = at::log_softmax(at::mm(hidden, head.t()), 1), counted = in.targets.ne(-100);
       return -(log_p.gather(1, in.targets.clamp_min(0).unsqueeze(1)).squeeze(1) * counted).sum();
     },
     [](const Case& in, const at::Tensor& hidden, const at::Tensor& head, Shard& shard, int64_t chunk) {
       return cross_entropy(hidden, head, in.targets, shard, chunk);
     }},
    {"KL divergence",
     [](const Case& in, const at::Tensor& hidden, const at::Tensor& head) {
       const at::Tensor p = at::log_softmax(at::mm(in.teacher_hidden, in.teacher_head.t()), 1);
       return (p.exp() * (p - at::log_softmax(at::mm(hidden, head.t()), 1))).sum();
     },
     [](const Case& in, const at::Tensor& hidden, const at::Tensor& head, Shard& shard, int64_t chunk) {
       const at::Tensor teacher_head = in.teacher_head.chunk(shard.size(), 0)[shard.rank()];
       return kl_divergence(hidden, head, in.teacher_hidden, teacher_head, shard, chunk);
     }},
};

TEST(VocabularyLoss, IsItsDefinitionInAnyChunkAndScalesWithTheIncomingGradient) {
  const Case in = random_case();
  for (const Loss& loss : kLosses) {
    const at::Tensor hidden = copied(in.hidden), head = copied(in.head);
    const at::Tensor expected = loss.definition(in, hidden, head);
    (expected * 3.0).backward();
    for (const int64_t chunk : {1, 5, 13, 64}) {
      const at::Tensor h = copied(in.hidden), w = copied(in.head);
      Shard whole;
      const at::Tensor actual = loss.ours(in, h, w, whole, chunk);
      (actual * 3.0).backward();
      EXPECT_EQ(actual.dim(), 0);
      EXPECT_LT(relative_error(expected, actual), 1e-12) << loss.name << " " << chunk;
      EXPECT_LT(relative_error(hidden.grad(), h.grad()), 1e-12) << loss.name << " " << chunk;
      EXPECT_LT(relative_error(head.grad(), w.grad()), 1e-12) << loss.name << " " << chunk;
    }
  }
}

TEST(VocabularyLoss, TwoPiecesAreTheWhole) {
  const Case in = random_case();
  for (const Loss& loss : kLosses) {
    const at::Tensor hidden = copied(in.hidden), head = copied(in.head);
    const at::Tensor expected = loss.definition(in, hidden, head);
    expected.backward();
    std::vector<at::Tensor> values(kPieces), d_hidden(kPieces), d_head(kPieces);
    std::vector<int> reductions(kPieces);
    on_every_rank([&](ThreadShard& shard) {
      const at::Tensor h = copied(in.hidden), w = rows_of(in.head, shard);
      const at::Tensor value = loss.ours(in, h, w, shard, 4);
      value.backward();
      values[shard.rank()] = value.detach();
      d_hidden[shard.rank()] = h.grad();
      d_head[shard.rank()] = w.grad();
      reductions[shard.rank()] = shard.reductions;
    });
    for (int rank = 0; rank < kPieces; ++rank) {
      EXPECT_LT(relative_error(expected, values[rank]), 1e-12) << loss.name;
      EXPECT_LT(relative_error(hidden.grad(), d_hidden[rank]), 1e-12) << loss.name;
      EXPECT_EQ(reductions[rank], 4 * 2 + 1) << "a maximum and a sum a chunk, the hidden gradient";
    }
    EXPECT_LT(relative_error(head.grad(), at::cat(d_head)), 1e-12) << loss.name;
  }
}

TEST(VocabularyLoss, CentralDifferences) {
  const Case in = random_case();
  constexpr double kStep = 1e-5;
  for (const Loss& loss : kLosses) {
    const at::Tensor hidden = copied(in.hidden), head = copied(in.head);
    Shard whole;
    const auto value = [&] { return loss.ours(in, hidden, head, whole, 4); };
    value().backward();
    for (const at::Tensor& x : {hidden, head}) {
      const at::Tensor flat = x.detach().view(-1), gradient = x.grad().flatten();
      for (int64_t place = 0; place < flat.numel(); place += 11) {
        const double here = flat[place].item<double>();
        flat[place].fill_(here + kStep);
        const double above = value().item<double>();
        flat[place].fill_(here - kStep);
        const double below = value().item<double>();
        flat[place].fill_(here);
        EXPECT_NEAR(gradient[place].item<double>(), (above - below) / (2 * kStep), 1e-6) << loss.name;
      }
    }
  }
}

TEST(VocabularyLoss, NoGradientIsWorkedOutWhereNoneIsWanted) {
  const Case in = random_case();
  for (const Loss& loss : kLosses) {
    on_every_rank([&](ThreadShard& shard) {
      const at::Tensor w = rows_of(in.head, shard);
      const c10::NoGradGuard no_gradient;
      EXPECT_FALSE(loss.ours(in, copied(in.hidden), w, shard, 64).requires_grad());
      EXPECT_EQ(shard.reductions, 2) << "the hidden gradient must not be reduced: " << loss.name;
    });
    Shard whole;
    const at::Tensor frozen = in.head.detach(), hidden = copied(in.hidden);
    loss.ours(in, hidden, frozen, whole, 4).backward();
    EXPECT_TRUE(hidden.grad().defined());
    EXPECT_FALSE(frozen.grad().defined());
  }
}

TEST(VocabularyLoss, LargeLogitsStayFinite) {
  const Case in = random_case();
  for (const Loss& loss : kLosses) {
    const at::Tensor hidden = (in.hidden.detach() * 1e3).set_requires_grad(true), head = copied(in.head);
    Shard whole;
    const at::Tensor value = loss.ours(in, hidden, head, whole, 4);
    value.backward();
    EXPECT_LT(relative_error(loss.definition(in, hidden, head), value), 1e-12) << loss.name;
    EXPECT_TRUE(hidden.grad().isfinite().all().item<bool>() && head.grad().isfinite().all().item<bool>());
  }
}

TEST(VocabularyLoss, AStudentThatIsItsTeacherHasNothingToLearn) {
  const Case in = random_case();
  const at::Tensor hidden = in.hidden.to(at::kFloat).detach().set_requires_grad(true),
                   head = in.head.to(at::kFloat).detach().set_requires_grad(true);
  Shard whole;
  const at::Tensor loss = kl_divergence(hidden, head, hidden, head, whole, 4);
  loss.backward();
  EXPECT_EQ(loss.item<double>(), 0.0);
  EXPECT_EQ(hidden.grad().abs().max().item<double>(), 0.0);
}

// In float32 the terms' rounding adds up over a long row; what a shift of all logits takes away cancels.
TEST(VocabularyLoss, IsExactInFloat32OverLongRows) {
  at::manual_seed(3);
  constexpr int64_t kLong = 40000;
  const at::Tensor hidden = at::randn({7, 8}), head = at::randn({kLong, 8});
  const at::Tensor other = hidden + 0.01 * at::randn({7, 8}), shifted = at::cat({other, at::full({7, 1}, 20.0)}, 1),
                   with_ones = at::cat({head, at::ones({kLong, 1})}, 1);
  const at::Tensor log_p = at::log_softmax(at::mm(shifted.to(at::kDouble), with_ones.to(at::kDouble).t()), 1),
                   log_q = at::log_softmax(at::mm(hidden.to(at::kDouble), head.to(at::kDouble).t()), 1);
  Shard whole;
  const at::Tensor h = copied(hidden).set_requires_grad(true);
  const at::Tensor loss = kl_divergence(h, head, shifted, with_ones, whole, 4);
  loss.backward();
  const double exact = (log_p.exp() * (log_p - log_q)).sum().item<double>();
  EXPECT_NEAR(loss.item<double>(), exact, 7 * 1e-5) << exact;
  EXPECT_LT(relative_error(at::mm(log_q.exp() - log_p.exp(), head.to(at::kDouble)), h.grad()), 1e-4);
}

TEST(VocabularyLoss, IgnoredTargetsAloneCostNothing) {
  const Case in = random_case();
  const at::Tensor hidden = copied(in.hidden), head = copied(in.head);
  Shard whole;
  const at::Tensor loss = cross_entropy(hidden, head, at::full({kTokens}, -100, at::kLong), whole, 4);
  loss.backward();
  EXPECT_EQ(loss.item<double>(), 0.0);
  EXPECT_EQ(hidden.grad().abs().max().item<double>(), 0.0);
  EXPECT_EQ(head.grad().abs().max().item<double>(), 0.0);
}

TEST(VocabularyLoss, TargetsOutsideTheVocabularyAreRefused) {
  const Case in = random_case();
  Shard whole;
  for (const int64_t bad : {kRows, int64_t{-1}}) {
    at::Tensor targets = in.targets.clone();
    targets[6].fill_(bad);
    EXPECT_THROW(cross_entropy(in.hidden, in.head, targets, whole), c10::Error) << bad;
  }
}

TEST(GreedyTokens, AreTheLargestLogitsOnAnyNumberOfPieces) {
  const Case in = random_case();
  const at::Tensor expected = at::mm(in.hidden, in.head.t()).argmax(1);
  Shard whole;
  EXPECT_TRUE(greedy_tokens(in.hidden, in.head, whole, 4).equal(expected));
  on_every_rank([&](ThreadShard& shard) {
    EXPECT_TRUE(greedy_tokens(in.hidden, rows_of(in.head, shard), shard, 4).equal(expected));
  });
  EXPECT_EQ(greedy_tokens(in.hidden.narrow(0, 0, 0), in.head, whole).size(0), 0);
}

TEST(GreedyTokens, TakeTheSmallestIdAmongEquals) {
  const at::Tensor up = at::ones({1, 1}, at::kDouble), down = -up;
  const at::Tensor head =
      at::tensor({1.0, 2.0, 2.0, 0.0, 2.0, 0.0}, at::kDouble).view({6, 1});  // ties across the pieces
  Shard whole;
  EXPECT_EQ(greedy_tokens(up, head, whole).item<int64_t>(), 1);
  EXPECT_EQ(greedy_tokens(down, head, whole).item<int64_t>(), 3);
  on_every_rank([&](ThreadShard& shard) {
    EXPECT_EQ(greedy_tokens(up, rows_of(head, shard), shard).item<int64_t>(), 1);
    EXPECT_EQ(greedy_tokens(down, rows_of(head, shard), shard).item<int64_t>(), 3);
  });
}

}  // namespace
}  // namespace flashmorph
