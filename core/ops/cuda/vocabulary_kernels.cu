#include <limits>

#include "core/ops/cuda/row_sum.cuh"
#include "core/ops/cuda/vocabulary_kernels.h"

namespace flashmorph::cuda {
namespace {

// The largest of a block's numbers, on each of its threads. Every thread of the block calls it.
template <class A>
__device__ A block_max(A value) {
  __shared__ A of_warp[kThreads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, step);
    value = other > value ? other : value;
  }
  __syncthreads();  // the last call's readers are through
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) value = of_warp[warp] > value ? of_warp[warp] : value;
  return value;
}

// sum exp(z - max) of the numbers seen so far (online softmax, arXiv 1805.02867), and sums beside it with the same
// factors. The lowest finite number, not -inf, is what nothing has as its largest: it has a difference from -inf.
template <class A>
struct OnlineSum {
  static constexpr A kLowest = std::numeric_limits<A>::lowest();
  A max = kLowest, sum = 0, cross = 0;

  // Before the W numbers are added.
  template <int W>
  __device__ void rise(const Vector<A, W>& z) {
    A largest = max;
#pragma unroll
    for (int w = 0; w < W; ++w) largest = z.value[w] > largest ? z.value[w] : largest;
    if (largest == max) return;
    const A scale = exponential(max - largest);
    sum *= scale;
    cross *= scale;
    max = largest;
  }
};

// A block has a row.
template <class A, int W, bool kTeacher>
__global__ void sums_of_rows(const A* logits, const A* teacher, double* sums, int64_t width) {
  const int64_t row = blockIdx.x, rows = gridDim.x;
  OnlineSum<A> of_z, of_y;
#pragma unroll 2
  for (int64_t i = int64_t{threadIdx.x} * W; i < width; i += kThreads * W) {
    const auto z = load<A, W>(logits + row * width + i);
    of_z.rise(z);
#pragma unroll
    for (int w = 0; w < W; ++w) of_z.sum += exponential(z.value[w] - of_z.max);
    if constexpr (kTeacher) {
      const auto y = load<A, W>(teacher + row * width + i);
      of_y.rise(y);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A power = exponential(y.value[w] - of_y.max);
        of_y.sum += power;
        of_y.cross += power * (y.value[w] - z.value[w]);
      }
    }
  }

  const auto over_block = [row, rows, sums](const OnlineSum<A>& own, int of_max, int of_sum, int of_cross) {
    const A max = block_max(own.max);
    const double scale = exp(static_cast<double>(own.max - max));
    const double sum = row_sum(own.sum * scale, kThreads);
    const double cross = of_cross < 0 ? 0.0 : row_sum(own.cross * scale, kThreads);
    if (threadIdx.x > 0) return;
    sums[of_max * rows + row] = max;
    sums[of_sum * rows + row] = sum;
    if (of_cross >= 0) sums[of_cross * rows + row] = cross;
  };
  over_block(of_z, 0, kTeacher ? 2 : 1, -1);
  if constexpr (kTeacher) over_block(of_y, 1, 3, 4);
}

// A block has a row.
template <class A, class T, int W>
__global__ void gradient_of_rows(const A* logits, const A* teacher, const int64_t* column, const double* sums,
                                 T* gradient, int64_t width) {
  const int64_t row = blockIdx.x, rows = gridDim.x;
  const bool beside = teacher != nullptr;
  const A max_z = static_cast<A>(sums[row]), max_y = beside ? static_cast<A>(sums[rows + row]) : A(0);
  const A per_z = static_cast<A>(1.0 / sums[(beside ? 2 : 1) * rows + row]);
  const A per_y = beside ? static_cast<A>(1.0 / sums[3 * rows + row]) : A(0);
  const int64_t target = column == nullptr ? -1 : column[row];
  const bool counts = target >= -1;
#pragma unroll 2
  for (int64_t i = int64_t{threadIdx.x} * W; i < width; i += kThreads * W) {
    const auto z = load<A, W>(logits + row * width + i);
    Vector<A, W> y = {};
    if (beside) y = load<A, W>(teacher + row * width + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      A d = exponential(z.value[w] - max_z) * per_z;
      if (beside) d -= exponential(y.value[w] - max_y) * per_y;
      if (i + w == target) d -= A(1);
      out.value[w] = to<T>(counts ? d : A(0));
    }
    store<T, W>(gradient + row * width + i, out);
  }
}

template <class Work>
void with_logits(Element type, int64_t width, const Work& work) {
  with_width(type, width, [&]<class A, int W>(A a, std::integral_constant<int, W> wide) {
    if constexpr (!std::is_same_v<A, __nv_bfloat16>) work(a, wide);
  });
}

}  // namespace

void softmax_sums(Element type, const void* logits, const void* teacher, double* sums, int64_t rows, int64_t width,
                  Stream stream) {
  if (rows == 0) return;
  with_logits(type, width, [&]<class A, int W>(A, std::integral_constant<int, W>) {
    const auto kernel = teacher != nullptr ? sums_of_rows<A, W, true> : sums_of_rows<A, W, false>;
    kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(static_cast<const A*>(logits),
                                                                 static_cast<const A*>(teacher), sums, width);
  });
  check_launch("softmax_sums");
}

void softmax_gradient(Element type, Element to, const void* logits, const void* teacher, const int64_t* column,
                      const double* sums, void* gradient, int64_t rows, int64_t width, Stream stream) {
  if (rows == 0) return;
  with_logits(type, width, [&]<class A, int W>(A, std::integral_constant<int, W>) {
    const auto launch = [&]<class T>(T) {
      gradient_of_rows<A, T, W><<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
          static_cast<const A*>(logits), static_cast<const A*>(teacher), column, sums, static_cast<T*>(gradient),
          width);
    };
    if (to == type) return launch(A());
    if constexpr (std::is_same_v<A, float>) launch(__nv_bfloat16());
  });
  check_launch("softmax_gradient");
}

}  // namespace flashmorph::cuda
