#include "core/ops/cuda/row_sum.cuh"
#include "core/ops/cuda/short_convolution_kernels.h"

namespace flashmorph::cuda {
namespace {

// Whether token t reads the one a lag before, as far as documents are concerned. If not, it reads none before that.
__device__ __forceinline__ bool reaches(const int* place, int64_t t, int64_t lag) {
  return place == nullptr || place[t] >= lag;
}

// Where token t - lag of a row lies; null when there is none.
template <class T>
__device__ __forceinline__ const T* earlier(const Convolution& of, int64_t row, int64_t t, int64_t lag) {
  const int64_t s = t - lag;
  if (s >= 0) return static_cast<const T*>(of.x_BTC) + (row * of.tokens + s) * of.channels;
  if (s < -of.past) return nullptr;
  return static_cast<const T*>(of.past_BPC) + (row * of.past + of.past + s) * of.channels;
}

template <class T, int W>
__global__ void convolve_forward(Convolution of, T* y) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= of.rows * of.tokens * of.channels) return;
  const int64_t c = i % of.channels, token = i / of.channels, row = token / of.tokens, t = token % of.tokens;
  const T* weight = static_cast<const T*>(of.weight_CW) + c * of.taps;
  A sum[W] = {};
  for (int64_t lag = 0; lag < of.taps && reaches(of.place_T, t, lag); ++lag) {
    const T* from = earlier<T>(of, row, t, lag);
    if (from == nullptr) break;
    const auto x = load<T, W>(from + c);
#pragma unroll
    for (int w = 0; w < W; ++w) sum[w] += to<A>(x.value[w]) * to<A>(weight[w * of.taps + of.taps - 1 - lag]);
  }
  Vector<T, W> out;
#pragma unroll
  for (int w = 0; w < W; ++w) out.value[w] = to<T>(sum[w]);
  store<T, W>(y + i, out);
}

// dx_s = sum over lags of weight dy_{s + lag}.
template <class T, int W>
__global__ void convolve_gradient(Convolution of, const T* dy, T* dx) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= of.rows * of.tokens * of.channels) return;
  const int64_t c = i % of.channels, s = i / of.channels % of.tokens;
  const T* weight = static_cast<const T*>(of.weight_CW) + c * of.taps;
  A sum[W] = {};
  for (int64_t lag = 0; lag < of.taps && s + lag < of.tokens && reaches(of.place_T, s + lag, lag); ++lag) {
    const auto d = load<T, W>(dy + i + lag * of.channels);
#pragma unroll
    for (int w = 0; w < W; ++w) sum[w] += to<A>(d.value[w]) * to<A>(weight[w * of.taps + of.taps - 1 - lag]);
  }
  Vector<T, W> out;
#pragma unroll
  for (int w = 0; w < W; ++w) out.value[w] = to<T>(sum[w]);
  store<T, W>(dx + i, out);
}

// A block has one part of the tokens, some channels and one tap.
template <class T, int W>
__global__ void convolve_weight_gradient(Convolution of, const T* dy, Acc<T>* partial) {
  using A = Acc<T>;
  const int64_t c = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * W, lag = blockIdx.z;
  if (c >= of.channels) return;
  A sum[W] = {};
  for (int64_t token = blockIdx.x; token < of.rows * of.tokens; token += gridDim.x) {
    const int64_t row = token / of.tokens, t = token % of.tokens;
    if (!reaches(of.place_T, t, lag)) continue;
    const T* from = earlier<T>(of, row, t, lag);
    if (from == nullptr) continue;
    const auto x = load<T, W>(from + c), d = load<T, W>(dy + token * of.channels + c);
#pragma unroll
    for (int w = 0; w < W; ++w) sum[w] += to<A>(x.value[w]) * to<A>(d.value[w]);
  }
#pragma unroll
  for (int w = 0; w < W; ++w) partial[(blockIdx.x * of.channels + c + w) * of.taps + of.taps - 1 - lag] = sum[w];
}

}  // namespace

void convolve(Element type, const Convolution& of, void* y, Stream stream) {
  with_width(type, of.channels, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const int64_t vectors = of.rows * of.tokens * of.channels / W;
    convolve_forward<T, W><<<blocks_for(vectors, kThreads), kThreads, 0, stream>>>(of, static_cast<T*>(y));
  });
  check_launch("convolve");
}

void convolve_backward(Element type, const Convolution& of, const void* dy, void* dx, void* partial, int64_t parts,
                       Stream stream) {
  with_width(type, of.channels, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const int64_t vectors = of.rows * of.tokens * of.channels / W;
    convolve_gradient<T, W>
        <<<blocks_for(vectors, kThreads), kThreads, 0, stream>>>(of, static_cast<const T*>(dy), static_cast<T*>(dx));
    if (partial == nullptr) return;
    const dim3 grid(static_cast<unsigned>(parts), blocks_for(of.channels / W, kThreads),
                    static_cast<unsigned>(of.taps));
    convolve_weight_gradient<T, W>
        <<<grid, kThreads, 0, stream>>>(of, static_cast<const T*>(dy), static_cast<Acc<T>*>(partial));
  });
  check_launch("convolve_backward");
}

}  // namespace flashmorph::cuda
