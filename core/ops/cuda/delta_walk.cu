#include <cuda_pipeline.h>

#include "core/ops/cuda/gated_delta_kernels.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"

// The walk of gated_delta_rule's states. Each chunk's step needs the state that the step before left, so one block
// takes a sequence and head from end to end, with kSlice of the state's columns in shared memory: columns do not meet.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = static_cast<int>(kTile);

// Tensor cores are fed from shared memory, to which the next chunk's operands are copied meanwhile.
template <class T>
constexpr bool kTensorCores = std::is_same_v<T, __nv_bfloat16>;
constexpr int kPad = 8;  // between rows in shared memory: neighbouring rows lie in other banks

struct Shape {
  int heads, size, key_size, value_size;
};

// A chunk's part of DeltaWalk, for one slice of columns.
template <class T, class A>
struct Operands {
  T *reading, *writing;  // [size, key_size], rows `key_stride` apart
  A *added, *more;       // [size, kSlice] and [key_size, kSlice], rows `stride` apart
  int key_stride, stride;
};
template <class T>
using Given = Operands<const T, const Acc<T>>;  // in global memory
template <class T>
using Copy = Operands<T, Acc<T>>;  // in shared memory

template <class T>
__host__ __device__ constexpr size_t copy_bytes(const Shape& shape) {
  return 2 * shape.size * (shape.key_size + kPad) * sizeof(T) + (shape.size + shape.key_size) * kSlice * sizeof(Acc<T>);
}

template <class T>
__device__ __forceinline__ Copy<T> copy_in(unsigned char* memory, const Shape& shape) {
  const int stride = shape.key_size + kPad;
  T* const reading = reinterpret_cast<T*>(memory);
  T* const writing = reading + shape.size * stride;
  Acc<T>* const added = reinterpret_cast<Acc<T>*>(writing + shape.size * stride);
  return {reading, writing, added, added + shape.size * kSlice, stride, kSlice};
}

// Starts copying. A thread copies those entries of the slices that it reads itself.
template <class T>
__device__ void copy_ahead(const Given<T>& from, const Copy<T>& to, const Shape& shape, int columns, bool more) {
  const int per_row = shape.key_size / kWide<T>;
  for (int at = threadIdx.x; at < shape.size * per_row; at += kThreads) {
    const int place = at / per_row * to.key_stride + at % per_row * kWide<T>;
    __pipeline_memcpy_async(to.reading + place, from.reading + at * kWide<T>, 16);
    __pipeline_memcpy_async(to.writing + place, from.writing + at * kWide<T>, 16);
  }
  const auto copy_slice = [&](Acc<T>* y, const Acc<T>* x, int rows) {
    for (int at = threadIdx.x; at < rows * kSlice; at += kThreads)
      if (at % kSlice < columns)
        __pipeline_memcpy_async(y + at, x + int64_t{at / kSlice} * from.stride + at % kSlice, sizeof(Acc<T>));
  };
  copy_slice(to.added, from.added, shape.size);
  if (more) copy_slice(to.more, from.more, shape.key_size);
}

// sum [rows, kSlice] += left right. right [depth, kSlice]; left [rows, depth], or [depth, rows] when it is transposed,
// its rows `stride` apart.
template <class T, bool kTransposed>
__device__ void add_product(const T* left, int stride, const T* right, Acc<T>* sum, int rows, int depth) {
  if constexpr (kTensorCores<T>) {
    constexpr int kSide = static_cast<int>(kTile);
    for (int row = threadIdx.x / 32 * kSide; row < rows; row += kThreads / 32 * kSide) {
      SumTile tile;
      tile.each([&](float& x, int i, int j) { x = sum[(row + i) * kSlice + j]; });
#pragma unroll 4
      for (int d = 0; d < depth; d += kSide)
        tile.add(LeftTile<kTransposed>(kTransposed ? left + d * stride + row : left + row * stride + d, stride),
                 RightTile(right + d * kSlice, kSlice));
      tile.each([&](float x, int i, int j) { sum[(row + i) * kSlice + j] = x; });
    }
  } else {
    for (int at = threadIdx.x; at < rows * kSlice; at += kThreads) {
      const int row = at / kSlice, column = at % kSlice;
      T total = sum[at];
      for (int d = 0; d < depth; ++d)
        total += (kTransposed ? left[d * stride + row] : left[row * stride + d]) * right[d * kSlice + column];
      sum[at] = total;
    }
  }
}

// blockIdx.x: a sequence, a head and a slice of columns; neighbours share their keys in the cache.
template <class T>
__global__ void __launch_bounds__(kThreads) walk_slices(DeltaWalk walk, Shape shape, ChunkTable table, bool backwards) {
  using A = Acc<T>;
  extern __shared__ __align__(32) unsigned char memory[];
  const int size = shape.size, key_size = shape.key_size, value_size = shape.value_size;
  A* const state = reinterpret_cast<A*>(memory);  // [key_size, kSlice]
  A* const token = state + key_size * kSlice;     // [size, kSlice]: what the tokens write
  T* const rounded_state = reinterpret_cast<T*>(token + size * kSlice);
  T* const rounded_token = rounded_state + key_size * kSlice;
  unsigned char* const copies = reinterpret_cast<unsigned char*>(rounded_token + size * kSlice);  // two, by turns
  const int slices = (value_size + kSlice - 1) / kSlice, first_column = blockIdx.x % slices * kSlice;
  const int columns = min(kSlice, value_size - first_column);
  const int64_t owner = blockIdx.x / slices, sequence = owner / shape.heads, head = owner % shape.heads;
  const int64_t first = table.first_chunk_S1[sequence], last = table.first_chunk_S1[sequence + 1];

  // use(place in the slice, place in a tensor [.., rows, value_size]) for the columns that exist.
  const auto each = [&](int rows, int64_t matrix, const auto& use) {
    for (int at = threadIdx.x; at < rows * kSlice; at += kThreads)
      if (at % kSlice < columns) use(at, (matrix * rows + at / kSlice) * value_size + first_column + at % kSlice);
  };
  const auto matrix_at = [&](int64_t step) {
    return (backwards ? last - 1 - step : first + step) * shape.heads + head;
  };
  const auto given_at = [&](int64_t step) {
    const int64_t matrix = matrix_at(step), keys = matrix * size * key_size;
    const auto slice = [&](const void* x, int rows) {
      return static_cast<const A*>(x) + matrix * rows * value_size + first_column;
    };
    return Given<T>{static_cast<const T*>(walk.reading_NHCK) + keys,
                    static_cast<const T*>(walk.writing_NHCK) + keys,
                    slice(walk.added_NHCV, size),
                    slice(walk.more_NHKV, key_size),
                    key_size,
                    value_size};
  };
  const auto copied_at = [&](int64_t step) { return copy_in<T>(copies + step % 2 * copy_bytes<T>(shape), shape); };
  const bool more = walk.more_NHKV != nullptr;

  A* const kept = static_cast<A*>(walk.state_SHKV);
  for (int at = threadIdx.x; at < (key_size + size) * kSlice; at += kThreads) state[at] = A(0);
  __syncthreads();
  each(key_size, owner, [&](int at, int64_t place) { state[at] = kept[place]; });
  if constexpr (kTensorCores<T>) {
    copy_ahead<T>(given_at(0), copied_at(0), shape, columns, more);
    __pipeline_commit();
  }
  for (int64_t step = 0; step < last - first; ++step) {
    const int64_t matrix = matrix_at(step);
    const A whole = static_cast<const A*>(walk.whole_NH)[matrix];
    const auto here = [&] {
      if constexpr (kTensorCores<T>)
        return copied_at(step);
      else
        return given_at(step);
    }();
    __syncthreads();  // the step before is over
    if constexpr (kTensorCores<T>) {
      if (step + 1 < last - first) copy_ahead<T>(given_at(step + 1), copied_at(step + 1), shape, columns, more);
      __pipeline_commit();
    }
    for (int at = threadIdx.x; at < key_size * kSlice; at += kThreads) rounded_state[at] = to<T>(state[at]);
    each(key_size, matrix,
         [&](int at, int64_t place) { static_cast<T*>(walk.entered_NHKV)[place] = to<T>(state[at]); });
    if constexpr (kTensorCores<T>) __pipeline_wait_prior(1);  // all but the newest copy has arrived
    each(size, matrix,
         [&](int at, int64_t) { token[at] = here.added[int64_t{at / kSlice} * here.stride + at % kSlice]; });
    __syncthreads();
    add_product<T, false>(here.reading, here.key_stride, rounded_state, token, size, key_size);
    __syncthreads();
    for (int at = threadIdx.x; at < size * kSlice; at += kThreads) rounded_token[at] = to<T>(token[at]);
    each(size, matrix, [&](int at, int64_t place) { static_cast<T*>(walk.written_NHCV)[place] = to<T>(token[at]); });
    each(key_size, matrix, [&](int at, int64_t) {
      state[at] = whole * state[at] + (more ? here.more[int64_t{at / kSlice} * here.stride + at % kSlice] : A(0));
    });
    __syncthreads();
    add_product<T, true>(here.writing, here.key_stride, rounded_token, state, key_size, size);
  }
  __syncthreads();
  each(key_size, owner, [&](int at, int64_t place) { kept[place] = state[at]; });
}

}  // namespace

void walk_delta_states(Element type, const DeltaWalk& walk, int64_t heads, int64_t size, int64_t key_size,
                       int64_t value_size, const ChunkTable& table, bool backwards, Stream stream) {
  with_type(type, [&]<class T>(T) {
    const Shape shape{static_cast<int>(heads), static_cast<int>(size), static_cast<int>(key_size),
                      static_cast<int>(value_size)};
    const size_t bytes =
        (key_size + size) * kSlice * (sizeof(Acc<T>) + sizeof(T)) + (kTensorCores<T> ? 2 * copy_bytes<T>(shape) : 0);
    allow_shared_memory(walk_slices<T>, bytes);
    const int64_t blocks = table.sequences * heads * blocks_for(value_size, kSlice);
    walk_slices<T><<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(walk, shape, table, backwards);
  });
  check_launch("walk_delta_states");
}

}  // namespace flashmorph::cuda
