#pragma once

#include <ATen/ATen.h>

#include <array>
#include <barrier>
#include <exception>
#include <thread>

#include "core/ops/tensor_parallel.h"

namespace flashmorph::test {

// Two pieces of a model in two threads of this process, with a real sum between them.
class ShardPair {
 public:
  // work(shard) as rank 0 and as rank 1 at the same time; rethrows what either threw.
  template <class Work>
  void run(Work work) {
    std::array<std::exception_ptr, 2> errors;
    const auto rank = [&](int r) {
      try {
        work(pieces_[r]);
      } catch (...) {
        errors[r] = std::current_exception();
        meeting_.arrive_and_drop();  // the other rank must not wait for this one
      }
    };
    std::thread second(rank, 1);
    rank(0);
    second.join();
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  }

  int sums(int rank) const { return pieces_[rank].sums; }

 private:
  struct Piece : Shard {
    Piece(ShardPair& pair, int rank) : pair_(pair), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return 2; }
    void all_reduce_sum(at::Tensor& values) override {
      ++sums;
      pair_.brought_[rank_] = values.clone();
      pair_.meeting_.arrive_and_wait();
      values.copy_(pair_.brought_[0] + pair_.brought_[1]);
      pair_.meeting_.arrive_and_wait();
    }
    int sums = 0;

   private:
    ShardPair& pair_;
    int rank_;
  };

  std::barrier<> meeting_{2};
  std::array<at::Tensor, 2> brought_;
  std::array<Piece, 2> pieces_{Piece(*this, 0), Piece(*this, 1)};
};

// The part of a global tensor that a rank of two holds.
inline at::Tensor half(const at::Tensor& whole, int64_t dim, int rank) {
  return whole.narrow(dim, rank * whole.size(dim) / 2, whole.size(dim) / 2);
}

}  // namespace flashmorph::test
