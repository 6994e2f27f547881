#include "core/ops/cuda/rotation_kernels.h"
#include "core/ops/cuda/row_sum.cuh"

namespace flashmorph::cuda {
namespace {

// y = [x1 cos1 - x2 sin1, x2 cos2 + x1 sin2], back: each half takes the other's sine, negative. A thread has W places
// of the first half and the same of the second.
template <class T, int W>
__global__ void rotate_heads(const T* x, const Acc<T>* cos, const Acc<T>* sin, T* y, int64_t count, int64_t period,
                             int64_t heads, int64_t half, bool back) {
  using A = Acc<T>;
  const int64_t place = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (place >= count) return;
  const int64_t head = place / half, column = place % half;
  const int64_t angle = head / heads % period * 2 * half + column, at = head * 2 * half + column;
  const auto x1 = load<T, W>(x + at), x2 = load<T, W>(x + at + half);
  const auto cos1 = load<A, W>(cos + angle), cos2 = load<A, W>(cos + angle + half);
  const auto sin1 = load<A, W>(sin + angle), sin2 = load<A, W>(sin + angle + half);
  Vector<T, W> y1, y2;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A a = to<A>(x1.value[w]), b = to<A>(x2.value[w]);
    const A of_b = back ? -sin2.value[w] : sin1.value[w], of_a = back ? -sin1.value[w] : sin2.value[w];
    y1.value[w] = to<T>(a * cos1.value[w] - b * of_b);
    y2.value[w] = to<T>(b * cos2.value[w] + a * of_a);
  }
  store<T, W>(y + at, y1);
  store<T, W>(y + at + half, y2);
}

// The angles' accesses are 16 bytes at most, the heads' no wider.
template <class T>
constexpr int kAngles = 16 / sizeof(Acc<T>);

// A thread's part of one token's heads, of which it has W places of either half: a power of two of neighbouring lanes
// share a token, and a block's y has `at_once` of its heads, so that the angles are read once for all of them.
struct TokenHeads {
  int64_t token, at, angle;  // where the lane's places begin in the first head, and in the tables
  int column, first, last;   // heads
  bool here;

  __device__ TokenHeads(int64_t token, int lane, int width, int64_t tokens, int heads, int at_once, int64_t period,
                        int half)
      : token(token),
        at(token * heads * 2 * half + lane * width),
        angle(token % period * 2 * half + lane * width),
        column(lane * width),
        first(static_cast<int>(blockIdx.y) * at_once),
        last(min(first + at_once, heads)),
        here(token < tokens && column < half) {}
};

// Both halves of W numbers each.
template <class T, int W>
struct Halves {
  Acc<T> value[2][W] = {};

  __device__ Halves() = default;
  template <class From>
  __device__ Halves(const From* from, int64_t half) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto read = load<From, W>(from + h * half);
#pragma unroll
      for (int w = 0; w < W; ++w) value[h][w] = to<Acc<T>>(read.value[w]);
    }
  }
  __device__ void write(T* out, int64_t half) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Vector<T, W> rounded;
#pragma unroll
      for (int w = 0; w < W; ++w) rounded.value[w] = to<T>(value[h][w]);
      store<T, W>(out + h * half, rounded);
    }
  }
};

// Rotation by one token's angles: y = [x1 cos1 - x2 sin1, x2 cos2 + x1 sin2]; back, by the transposed one, each half
// takes the other's sine, negative.
template <class T, int W>
struct Turn {
  Halves<T, W> cos, sin;

  __device__ Turn() = default;
  __device__ Turn(const Acc<T>* cos_table, const Acc<T>* sin_table, int64_t half, bool back)
      : cos(cos_table, half), sin(sin_table, half) {
    if (!back) return;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const Acc<T> sin1 = sin.value[0][w];
      sin.value[0][w] = -sin.value[1][w];
      sin.value[1][w] = -sin1;
    }
  }

  __device__ Halves<T, W> of(const Halves<T, W>& x) const {
    Halves<T, W> y;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      y.value[0][w] = x.value[0][w] * cos.value[0][w] - x.value[1][w] * sin.value[0][w];
      y.value[1][w] = x.value[1][w] * cos.value[1][w] + x.value[0][w] * sin.value[1][w];
    }
    return y;
  }
};

template <class T, int W>
__global__ void norm_rotate_rows(const T* x, const T* weight, const Acc<T>* cos, const Acc<T>* sin, T* y,
                                 int64_t tokens, int heads, int at_once, int64_t period, int half, int lanes,
                                 Acc<T> epsilon) {
  using A = Acc<T>;
  const TokenHeads own((int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes, threadIdx.x % lanes, W, tokens, heads,
                       at_once, period, half);
  Turn<T, W> turn;
  Halves<T, W> scale;
  if (own.here) {
    turn = Turn<T, W>(cos + own.angle, sin + own.angle, half, /*back=*/false);
    scale = Halves<T, W>(weight + own.column, half);
  }
#pragma unroll 2
  for (int head = own.first; head < own.last; ++head) {
    const int64_t at = own.at + int64_t{head} * 2 * half;
    Halves<T, W> values;
    if (own.here) values = Halves<T, W>(x + at, half);
    A squares = 0;
#pragma unroll
    for (int w = 0; w < W; ++w)
      squares += values.value[0][w] * values.value[0][w] + values.value[1][w] * values.value[1][w];
    const A s = A(1) / sqrt(warp_sum(squares, lanes) / static_cast<A>(2 * half) + epsilon);
    if (!own.here) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int w = 0; w < W; ++w) values.value[h][w] *= s * scale.value[h][w];
    turn.of(values).write(y + at, half);
  }
}

// With d = dy rotated back: dx = s (d w) - x s^3 / size <d w, x>. A block has every gridDim.x-th group of tokens, and
// of the weight's gradient, the sum of d x s over rows, one part: its threads' sums are added in a fixed order.
template <class T, int W>
__global__ void norm_rotate_gradients(const T* dy, const T* x, const T* weight, const Acc<T>* cos, const Acc<T>* sin,
                                      T* dx, Acc<T>* partial, int64_t tokens, int heads, int at_once, int64_t period,
                                      int half, int lanes, Acc<T> epsilon) {
  using A = Acc<T>;
  __shared__ A of_thread[kThreads * 2 * W];
  const int group = kThreads / lanes, lane = threadIdx.x % lanes;
  Halves<T, W> sums, scale;
  if (lane * W < half) scale = Halves<T, W>(weight + lane * W, half);
  for (int64_t start = int64_t{blockIdx.x} * group; start < tokens; start += int64_t{gridDim.x} * group) {
    const TokenHeads own(start + threadIdx.x / lanes, lane, W, tokens, heads, at_once, period, half);
    Turn<T, W> turn;
    if (own.here) turn = Turn<T, W>(cos + own.angle, sin + own.angle, half, /*back=*/true);
#pragma unroll 2
    for (int head = own.first; head < own.last; ++head) {
      const int64_t at = own.at + int64_t{head} * 2 * half;
      Halves<T, W> values, d;
      if (own.here) {
        values = Halves<T, W>(x + at, half);
        d = turn.of(Halves<T, W>(dy + at, half));
      }
      A squares = 0, along = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < W; ++w) {
          squares += values.value[h][w] * values.value[h][w];
          along += d.value[h][w] * scale.value[h][w] * values.value[h][w];
        }
      const A s = A(1) / sqrt(warp_sum(squares, lanes) / static_cast<A>(2 * half) + epsilon);
      along = warp_sum(along, lanes) * s * s * s / static_cast<A>(2 * half);
      if (!own.here) continue;
      Halves<T, W> out;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < W; ++w) {
          out.value[h][w] = s * d.value[h][w] * scale.value[h][w] - values.value[h][w] * along;
          sums.value[h][w] += d.value[h][w] * values.value[h][w] * s;
        }
      out.write(dx + at, half);
    }
  }
  if (partial == nullptr) return;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int w = 0; w < W; ++w) of_thread[threadIdx.x * 2 * W + h * W + w] = sums.value[h][w];
  __syncthreads();
  for (int column = threadIdx.x; column < 2 * half; column += kThreads) {
    const int place = column % half / W * 2 * W + column / half * W + column % half % W;
    A sum = 0;
    for (int row = 0; row < group; ++row) sum += of_thread[row * lanes * 2 * W + place];
    partial[int64_t{blockIdx.x} * 2 * half + column] = sum;
  }
}

// work(T(), integral_constant<W>, lanes of a token) if a warp has room for the lanes. The accesses of a head are as
// wide as can be, or those of the angles.
template <bool kWideHeads, class Work>
bool with_lanes(Element type, int64_t size, const Work& work) {
  bool done = false;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    constexpr int kMost = kWideHeads ? kWide<T> : kAngles<T>;
    const auto attempt = [&]<int W>(std::integral_constant<int, W> width) {
      int lanes = 1;
      while (lanes * W < size / 2) lanes *= 2;
      if (lanes > 32) return;
      work(t, width, lanes);
      done = true;
    };
    size / 2 % kMost == 0 ? attempt(std::integral_constant<int, kMost>()) : attempt(std::integral_constant<int, 1>());
  });
  return done;
}

// Blocks of tokens, and of so many of their heads that the card is full if it can be.
struct HeadGrid {
  dim3 blocks;
  int at_once;

  HeadGrid(int64_t tokens, int64_t heads, int lanes) {
    constexpr int64_t kEnough = 1056;
    const unsigned of_tokens = blocks_for(tokens * lanes, kThreads);
    const int64_t groups = std::min<int64_t>(heads, (kEnough + of_tokens - 1) / of_tokens);
    at_once = static_cast<int>((heads + groups - 1) / groups);
    blocks = dim3(of_tokens, blocks_for(heads, at_once));
  }
};

}  // namespace

void rotate(Element type, const void* x, const void* cos, const void* sin, void* y, int64_t tokens, int64_t period,
            int64_t heads, int64_t size, bool back, Stream stream) {
  const int64_t half = size / 2, count = tokens * heads * half;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&]<int W>(std::integral_constant<int, W>) {
      rotate_heads<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
          static_cast<const T*>(x), static_cast<const Acc<T>*>(cos), static_cast<const Acc<T>*>(sin),
          static_cast<T*>(y), count, period, heads, half, back);
    };
    if (half % kAngles<T> == 0) return launch(std::integral_constant<int, kAngles<T>>());
    launch(std::integral_constant<int, 1>());
  });
  check_launch("rotate");
}

bool norm_rotates(Element type, int64_t size) {
  return with_lanes</*kWideHeads=*/false>(type, size, [](auto, auto, int) {});
}

void norm_rotate(Element type, const void* x, const void* weight, const void* cos, const void* sin, void* y,
                 int64_t tokens, int64_t period, int64_t heads, int64_t size, double epsilon, Stream stream) {
  with_lanes</*kWideHeads=*/false>(type, size, [&]<class T, int W>(T, std::integral_constant<int, W>, int lanes) {
    const HeadGrid grid(tokens, heads, lanes);
    norm_rotate_rows<T, W><<<grid.blocks, kThreads, 0, stream>>>(
        static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const Acc<T>*>(cos),
        static_cast<const Acc<T>*>(sin), static_cast<T*>(y), tokens, static_cast<int>(heads), grid.at_once, period,
        static_cast<int>(size / 2), lanes, static_cast<Acc<T>>(epsilon));
  });
  check_launch("norm_rotate");
}

void norm_rotate_backward(Element type, const void* dy, const void* x, const void* weight, const void* cos,
                          const void* sin, void* dx, void* partial, int64_t parts, int64_t tokens, int64_t period,
                          int64_t heads, int64_t size, double epsilon, Stream stream) {
  with_lanes</*kWideHeads=*/true>(type, size, [&]<class T, int W>(T, std::integral_constant<int, W>, int lanes) {
    HeadGrid grid(tokens, heads, lanes);
    if (partial != nullptr) grid.blocks = dim3(static_cast<unsigned>(parts)), grid.at_once = static_cast<int>(heads);
    norm_rotate_gradients<T, W><<<grid.blocks, kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(weight),
        static_cast<const Acc<T>*>(cos), static_cast<const Acc<T>*>(sin), static_cast<T*>(dx),
        static_cast<Acc<T>*>(partial), tokens, static_cast<int>(heads), grid.at_once, period,
        static_cast<int>(size / 2), lanes, static_cast<Acc<T>>(epsilon));
  });
  check_launch("norm_rotate_backward");
}

}  // namespace flashmorph::cuda
