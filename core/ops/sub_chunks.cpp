#include "core/ops/sub_chunks.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "core/ops/vectorised.h"

namespace flashmorph {
namespace {

struct Shape {
  int64_t G, C, K;
  explicit Shape(const at::Tensor& x_GCK) : G(x_GCK.size(0)), C(x_GCK.size(1)), K(x_GCK.size(2)) {}
};

// work(chunk, first, last, sub_chunk) for every sub-chunk [first, last) of every chunk.
template <class Work>
void for_each_sub_chunk(const Shape& shape, const Work& work) {
  at::parallel_for(0, shape.G, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      for (int64_t first = 0; first < shape.C; first += kSubChunk)
        work(chunk, first, std::min(first + kSubChunk, shape.C), first / kSubChunk);
  });
}

// w *= a, and returns <q, w>; independent partial sums let the compiler vectorise.
template <class Number>
FLASHMORPH_INLINED Number decayed_dot(Number* __restrict w, const Number* __restrict a, const Number* __restrict q,
                                      int64_t width) {
  constexpr int64_t kLanes = 16;
  Number lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      w[c + lane] *= a[c + lane];
      lanes[lane] += q[c + lane] * w[c + lane];
    }
  Number sum = 0;
  for (; c < width; ++c) {
    w[c] *= a[c];
    sum += q[c] * w[c];
  }
  for (const Number lane : lanes) sum += lane;
  return sum;
}

template <class Number>
FLASHMORPH_INLINED Number dot(const Number* __restrict x, const Number* __restrict y, int64_t width) {
  Number sum = 0;
  for (int64_t c = 0; c < width; ++c) sum += x[c] * y[c];
  return sum;
}

// One sub-chunk of `rows` tokens; pointers are to its first token.
template <class Number>
FLASHMORPH_VECTORISED void scores(const Number* q, const Number* k, const Number* a, Number* A, int64_t rows, int64_t K,
                                  int64_t A_stride, Number* w) {
  for (int64_t j = 0; j < rows; ++j) {
    std::copy_n(k + j * K, K, w);
    A[j * A_stride + j] = dot(q + j * K, w, K);
    for (int64_t i = j + 1; i < rows; ++i) A[i * A_stride + j] = decayed_dot(w, a + i * K, q + i * K, K);
  }
}

// dg_m gets, per channel: the outer sum; q_i dq_i of tokens i >= m and k_j dk_j of tokens j < m as they came from
// outside.
template <class Number>
FLASHMORPH_VECTORISED void outside_gradient(const Number* q, const Number* k, const Number* outer, const Number* dq,
                                            const Number* dk, Number* __restrict dg, int64_t rows, int64_t K,
                                            Number* __restrict sum) {
  std::copy_n(outer, K, sum);
  for (int64_t m = 0; m < rows; ++m) {
    std::copy_n(sum, K, dg + m * K);
    for (int64_t c = 0; c < K; ++c) sum[c] += k[m * K + c] * dk[m * K + c];
  }
  std::fill_n(sum, K, Number(0));
  for (int64_t m = rows - 1; m >= 0; --m)
    for (int64_t c = 0; c < K; ++c) {
      sum[c] += q[m * K + c] * dq[m * K + c];
      dg[m * K + c] += sum[c];
    }
}

// The pairs (i, j), for one j at a time: w_i = k_j a_{j+1} .. a_i, and Horner's rule for sum_i dA_ij q_i a_{j+1} ..
// a_i. dg_m gets sum_{i >= m} q_i dA_ij w_i for j < m.
template <class Number>
FLASHMORPH_VECTORISED void pair_gradients(const Number* q, const Number* k, const Number* a, const Number* dA,
                                          Number* dq, Number* dk, Number* dg, int64_t rows, int64_t K,
                                          int64_t dA_stride, Number* w, Number* __restrict along,
                                          Number* __restrict back) {
  for (int64_t j = 0; j < rows; ++j) {
    std::copy_n(k + j * K, K, w + j * K);
    for (int64_t i = j + 1; i < rows; ++i)
      for (int64_t c = 0; c < K; ++c) w[i * K + c] = w[(i - 1) * K + c] * a[i * K + c];
    std::fill_n(along, K, Number(0));
    std::fill_n(back, K, Number(0));
    for (int64_t i = rows - 1; i > j; --i) {
      const Number d = dA[i * dA_stride + j];
      const Number *q_i = q + i * K, *a_i = a + i * K, *w_i = w + i * K;
      Number* __restrict dq_i = dq + i * K, * __restrict dg_i = dg + i * K;
      for (int64_t c = 0; c < K; ++c) {
        const Number pulled = d * w_i[c];
        dq_i[c] += pulled;
        along[c] += q_i[c] * pulled;
        dg_i[c] += along[c];
        back[c] = (back[c] + d * q_i[c]) * a_i[c];
      }
    }
    const Number own = dA[j * dA_stride + j];
    for (int64_t c = 0; c < K; ++c) {
      dk[j * K + c] += back[c] + own * q[j * K + c];
      dq[j * K + c] += own * k[j * K + c];
    }
  }
}

}  // namespace

SubChunkDecays sub_chunk_decays(const at::Tensor& a_GCK) {
  const Shape shape(a_GCK);
  const int64_t K = shape.K;
  SubChunkDecays decays{at::empty_like(a_GCK), at::empty_like(a_GCK)};
  if (a_GCK.is_meta()) return decays;
  AT_DISPATCH_FLOATING_TYPES(a_GCK.scalar_type(), "sub_chunk_decays", [&] {
    const scalar_t* a = a_GCK.const_data_ptr<scalar_t>();
    scalar_t *up = decays.up_GCK.data_ptr<scalar_t>(), *rest = decays.rest_GCK.data_ptr<scalar_t>();
    for_each_sub_chunk(shape, [&](int64_t chunk, int64_t first, int64_t last, int64_t) {
      const int64_t row = (chunk * shape.C + first) * K, rows = last - first;
      std::copy_n(a + row, K, up + row);
      for (int64_t at = row + K; at < row + rows * K; ++at) up[at] = up[at - K] * a[at];
      std::fill_n(rest + row + (rows - 1) * K, K, scalar_t(1));
      for (int64_t at = row + (rows - 1) * K - 1; at >= row; --at) rest[at] = rest[at + K] * a[at + K];
    });
  });
  return decays;
}

void add_diagonal_scores(const at::Tensor& q_GCK, const at::Tensor& k_GCK, const at::Tensor& a_GCK, at::Tensor& A_GCC) {
  if (A_GCC.is_meta()) return;
  const Shape shape(q_GCK);
  const auto [G, C, K] = shape;
  AT_DISPATCH_FLOATING_TYPES(q_GCK.scalar_type(), "add_diagonal_scores", [&] {
    const scalar_t *q = q_GCK.const_data_ptr<scalar_t>(), *k = k_GCK.const_data_ptr<scalar_t>(),
                   *a = a_GCK.const_data_ptr<scalar_t>();
    scalar_t* A = A_GCC.data_ptr<scalar_t>();
    for_each_sub_chunk(shape, [&, C = C, K = K](int64_t chunk, int64_t first, int64_t last, int64_t) {
      std::vector<scalar_t> w(K);
      const int64_t row = chunk * C + first;
      scores(q + row * K, k + row * K, a + row * K, A + row * C + first, last - first, K, C, w.data());
    });
  });
}

void diagonal_backward(const at::Tensor& q_GCK, const at::Tensor& k_GCK, const at::Tensor& a_GCK,
                       const at::Tensor& dA_GCC, const at::Tensor& outer_GIK, at::Tensor& dq_GCK, at::Tensor& dk_GCK,
                       at::Tensor& dg_GCK) {
  if (q_GCK.is_meta()) return;
  const Shape shape(q_GCK);
  const int64_t C = shape.C, K = shape.K, sub_chunks = outer_GIK.size(1);
  AT_DISPATCH_FLOATING_TYPES(q_GCK.scalar_type(), "diagonal_backward", [&] {
    const scalar_t *q = q_GCK.const_data_ptr<scalar_t>(), *k = k_GCK.const_data_ptr<scalar_t>(),
                   *a = a_GCK.const_data_ptr<scalar_t>(), *dA = dA_GCC.const_data_ptr<scalar_t>(),
                   *outer = outer_GIK.const_data_ptr<scalar_t>();
    scalar_t *dq = dq_GCK.data_ptr<scalar_t>(), *dk = dk_GCK.data_ptr<scalar_t>(), *dg = dg_GCK.data_ptr<scalar_t>();
    for_each_sub_chunk(shape, [&](int64_t chunk, int64_t first, int64_t last, int64_t sub_chunk) {
      std::vector<scalar_t> buffer((kSubChunk + 2) * K);
      scalar_t *w = buffer.data(), *along = w + kSubChunk * K, *back = along + K;
      const int64_t row = chunk * C + first, at = row * K, rows = last - first;
      outside_gradient(q + at, k + at, outer + (chunk * sub_chunks + sub_chunk) * K, dq + at, dk + at, dg + at, rows, K,
                       along);
      pair_gradients(q + at, k + at, a + at, dA + row * C + first, dq + at, dk + at, dg + at, rows, K, C, w, along,
                     back);
    });
  });
}

}  // namespace flashmorph
