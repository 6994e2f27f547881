#include "core/ops/cuda/gate.cuh"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/short_convolution_kernels.h"

// A thread keeps the taps of W neighbouring channels and goes through runs of tokens. What a run needs is loaded at
// once, for a token that is not there one that is, and serves all lags from registers.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 128;         // of a block
constexpr int kRun = 8;               // tokens
constexpr int kBack = kMostTaps - 1;  // the longest lag
constexpr int kWindow = kRun + kBack;

// How many blocks a multiprocessor has registers for; gradients that read the inputs as well take more.
constexpr int blocks_at_once(bool of_both) { return of_both ? 2 : 3; }

// The runs of all rows, and in how many parts they are gone through: a part has every `parts`-th.
struct Runs {
  unsigned of_row, count, parts;
};

template <int W>
Runs runs_of(const Convolution& of, bool of_both) {
  const unsigned of_row = blocks_for(of.tokens, kRun), count = of_row * of.rows;
  const unsigned threads = multiprocessors() * blocks_at_once(of_both) * kThreads;
  return {of_row, count, std::clamp(threads / (of.channels / W), 1u, count)};
}

// This thread's first channel, and its part of the runs; there may be no such part.
template <int W>
struct Share {
  int channel;
  unsigned part;

  __device__ explicit Share(int channels) {
    const unsigned i = blockIdx.x * kThreads + threadIdx.x, vectors = channels / W;
    channel = i % vectors * W;
    part = i / vectors;
  }
};

template <int W>
unsigned blocks_of(const Convolution& of, const Runs& runs) {
  return blocks_for(int64_t{runs.parts} * (of.channels / W), kThreads);
}

// Where a row's tokens have a channel.
template <class T>
struct Tokens {
  T* zero;     // token 0's
  int stride;  // bytes from one token to the next

  // `before`: how many tokens lie before token 0.
  template <class Any>
  __device__ Tokens(Any* x_BTC, int64_t before, int channel, const Convolution& of)
      : zero(static_cast<T*>(x_BTC) + before * of.channels + channel),
        stride(of.channels * static_cast<int>(sizeof(T))) {}

  __device__ __forceinline__ T* operator[](int t) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(zero) + int64_t{t} * stride);
  }
};

// A row's inputs, the past before them; for a token that is not there one that is.
template <class T>
struct Inputs {
  Tokens<const T> x, past;
  int first, end;

  __device__ Inputs(int64_t row, int channel, const Convolution& of)
      : x(of.x_BTC, row * of.tokens, channel, of),
        past(of.past_BPC, (row + 1) * of.past, channel, of),
        first(-of.past),
        end(of.tokens) {}

  __device__ __forceinline__ const T* operator[](int t) const {
    const int there = min(max(t, first), end - 1);
    return (there < 0 ? past : x)[there];
  }
};

// The longest lag at which token t reads another; negative where there is no token t.
__device__ __forceinline__ int reach(const Convolution& of, int t) {
  if (t < 0 || t >= of.tokens) return -1;
  const int longest = min(of.taps - 1, t + of.past);
  return of.place_T == nullptr ? longest : min(longest, of.place_T[t]);
}

// What a channel has for each lag; its taps lie side by side, the last one is that of lag 0.
template <class T, int W>
__device__ __forceinline__ void load_taps(const T* from, int taps, Acc<T> (&lags)[kMostTaps][W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) {
    Vector<T, kMostTaps> own = {};
    if (taps == kMostTaps) {
      own = load<T, kMostTaps>(from + w * kMostTaps);
    } else {
#pragma unroll
      for (int lag = 0; lag < kMostTaps; ++lag)
        if (lag < taps) own.value[kMostTaps - 1 - lag] = from[(w + 1) * taps - 1 - lag];
    }
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) lags[lag][w] = to<Acc<T>>(own.value[kMostTaps - 1 - lag]);
  }
}

template <class A, int W>
__device__ __forceinline__ void store_taps(A* to, int taps, const A (&lags)[kMostTaps][W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) {
    Vector<A, kMostTaps> own;
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) own.value[kMostTaps - 1 - lag] = lags[lag][w];
    if (taps == kMostTaps) {
      store<A, kMostTaps>(to + w * kMostTaps, own);
    } else {
#pragma unroll
      for (int lag = 0; lag < kMostTaps; ++lag)
        if (lag < taps) to[(w + 1) * taps - 1 - lag] = own.value[kMostTaps - 1 - lag];
    }
  }
}

template <class T, int W>
__device__ __forceinline__ void widen(const Vector<T, W>& from, Acc<T> (&wide)[W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) wide[w] = to<Acc<T>>(from.value[w]);
}

template <class T, int W>
__device__ __forceinline__ void store_sum(T* at, const Acc<T> (&sum)[W]) {
  Vector<T, W> out;
#pragma unroll
  for (int w = 0; w < W; ++w) out.value[w] = to<T>(sum[w]);
  store<T, W>(at, out);
}

template <class A, int W>
__device__ __forceinline__ void add_product(const A (&a)[W], const A (&b)[W], A (&sum)[W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) sum[w] += a[w] * b[w];
}

template <class T, int W>
__global__ __launch_bounds__(kThreads, blocks_at_once(false)) void convolve_forward(Convolution of, Runs runs,
                                                                                    T* y_BTC) {
  using A = Acc<T>;
  const auto [channel, part] = Share<W>(of.channels);
  if (part >= runs.parts) return;
  A weight[kMostTaps][W];
  load_taps<T, W>(static_cast<const T*>(of.weight_CW) + channel * of.taps, of.taps, weight);
  for (unsigned run = part; run < runs.count; run += runs.parts) {
    const int64_t row = run / runs.of_row;
    const int first = static_cast<int>(run % runs.of_row) * kRun;
    const Inputs<T> x(row, channel, of);
    const Tokens<T> y(y_BTC, row * of.tokens, channel, of);
    Vector<T, W> read[kWindow];
    int reaches[kRun];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) read[i] = load<T, W>(x[first - kBack + i]);
#pragma unroll
    for (int i = 0; i < kRun; ++i) reaches[i] = reach(of, first + i);
    A sum[kRun][W] = {};
#pragma unroll
    for (int j = kWindow - 1; j >= 0; --j) {  // each number is widened once, each sum begins with lag 0
      A value[W];
      widen<T, W>(read[j], value);
#pragma unroll
      for (int lag = 0; lag < kMostTaps; ++lag) {
        const int i = j + lag - kBack;
        if (i >= 0 && i < kRun && lag <= reaches[i]) add_product(value, weight[lag], sum[i]);
      }
      if (j >= kRun || first + j >= of.tokens) continue;
      if (of.silu) {
#pragma unroll
        for (int w = 0; w < W; ++w) sum[j][w] = opened<T>(sum[j][w], /*swish=*/true);
      }
      store_sum<T, W>(y[first + j], sum[j]);
    }
  }
}

// With z a token's sum and dz = dy f'(z), for which z is summed again: dx_s = sum over lags of weight dz_{s + lag}, and
// the lag's gradient is the sum over tokens of dz_t x_{t - lag}. A run has those of its own tokens s and t.
template <class T, int W, bool kOfWeight, bool kSilu>
__global__ __launch_bounds__(kThreads,
                             blocks_at_once(kOfWeight || kSilu)) void convolve_gradients(Convolution of, Runs runs,
                                                                                         const T* dy_BTC, T* dx_BTC,
                                                                                         Acc<T>* partial) {
  using A = Acc<T>;
  constexpr int kInputs = kSilu ? kBack + kWindow : kOfWeight ? kBack + kRun : 0;  // from kBack tokens before the run
  const auto [channel, part] = Share<W>(of.channels);
  if (part >= runs.parts) return;
  A weight[kMostTaps][W], d_weight[kMostTaps][W] = {};
  load_taps<T, W>(static_cast<const T*>(of.weight_CW) + channel * of.taps, of.taps, weight);
  for (unsigned run = part; run < runs.count; run += runs.parts) {
    const int64_t row = run / runs.of_row;
    const int first = static_cast<int>(run % runs.of_row) * kRun;
    const Inputs<T> inputs(row, channel, of);
    const Tokens<const T> dy(dy_BTC, row * of.tokens, channel, of);
    const Tokens<T> dx(dx_BTC, row * of.tokens, channel, of);
    Vector<T, W> d[kWindow], x[kBack + kWindow];
    int reaches[kWindow];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) d[i] = load<T, W>(dy[min(first + i, of.tokens - 1)]);
#pragma unroll
    for (int i = 0; i < kInputs; ++i) x[i] = load<T, W>(inputs[first - kBack + i]);
#pragma unroll
    for (int i = 0; i < kWindow; ++i) reaches[i] = reach(of, first + i);
    A sum[kRun][W] = {}, input[kBack + kWindow][W];
#pragma unroll
    for (int i = 0; i < kBack; ++i)
      if (i < kInputs) widen<T, W>(x[i], input[i]);
#pragma unroll
    for (int j = 0; j < kWindow; ++j) {
      A dz[W];
      widen<T, W>(d[j], dz);
      if (j + kBack < kInputs) widen<T, W>(x[j + kBack], input[j + kBack]);
      if constexpr (kSilu) {
        A z[W] = {};
#pragma unroll
        for (int lag = 0; lag < kMostTaps; ++lag)
          if (lag <= reaches[j]) add_product(input[j + kBack - lag], weight[lag], z);
#pragma unroll
        for (int w = 0; w < W; ++w) dz[w] *= opened_slope<T>(z[w], /*swish=*/true);
      }
#pragma unroll
      for (int lag = 0; lag < kMostTaps; ++lag) {
        if (lag > reaches[j]) continue;
        const int i = j - lag;
        if (i >= 0 && i < kRun) add_product(dz, weight[lag], sum[i]);
        if constexpr (kOfWeight)
          if (j < kRun) add_product(input[j + kBack - lag], dz, d_weight[lag]);
      }
      const int whole = j - kBack;  // the sum that has all its lags now
      if (whole >= 0 && first + whole < of.tokens) store_sum<T, W>(dx[first + whole], sum[whole]);
    }
  }
  if constexpr (kOfWeight)
    store_taps<A, W>(partial + (int64_t{part} * of.channels + channel) * of.taps, of.taps, d_weight);
}

}  // namespace

void convolve(Element type, const Convolution& of, void* y, Stream stream) {
  with_width(type, of.channels, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const Runs runs = runs_of<W>(of, false);
    convolve_forward<T, W><<<blocks_of<W>(of, runs), kThreads, 0, stream>>>(of, runs, static_cast<T*>(y));
  });
  check_launch("convolve");
}

int64_t weight_gradient_parts(Element type, const Convolution& of) {
  int64_t parts = 0;
  with_width(type, of.channels,
             [&]<class T, int W>(T, std::integral_constant<int, W>) { parts = runs_of<W>(of, true).parts; });
  return parts;
}

void convolve_backward(Element type, const Convolution& of, const void* dy, void* dx, void* partial, Stream stream) {
  with_width(type, of.channels, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const bool of_weight = partial != nullptr;
    const Runs runs = runs_of<W>(of, of_weight || of.silu);
    const auto kernel = of_weight
                            ? of.silu ? convolve_gradients<T, W, true, true> : convolve_gradients<T, W, true, false>
                        : of.silu ? convolve_gradients<T, W, false, true>
                                  : convolve_gradients<T, W, false, false>;
    kernel<<<blocks_of<W>(of, runs), kThreads, 0, stream>>>(of, runs, static_cast<const T*>(dy), static_cast<T*>(dx),
                                                            static_cast<Acc<T>*>(partial));
  });
  check_launch("convolve_backward");
}

}  // namespace flashmorph::cuda
