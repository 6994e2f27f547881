#include <cuda_pipeline.h>

#include "core/ops/cuda/gated_delta_kernels.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"

// The walk of gated_delta_rule's states. Each chunk's step needs the state that the step before left, so one block
// takes a sequence and head from end to end, with kSlice of the state's columns in shared memory: columns do not meet.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256, kStages = 2;  // one chunk's operands arrive while another's are computed with
constexpr int kSlice = static_cast<int>(kTile);

// Tensor cores are fed from shared memory, to which the next chunks' operands are copied meanwhile.
template <class T>
constexpr bool kTensorCores = std::is_same_v<T, __nv_bfloat16>;
constexpr int kPad = 8;              // between rows in shared memory: neighbouring rows lie in other banks
constexpr int kRow = kSlice + kPad;  // of a slice that is a factor

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

template <class T>
__device__ void copy_ahead(const Given<T>& from, const Copy<T>& to, const Shape& shape, int columns, bool more) {
  const int per_row = shape.key_size / kWide<T>;
  for (int at = threadIdx.x; at < shape.size * per_row; at += kThreads) {
    const int place = at / per_row * to.key_stride + at % per_row * kWide<T>;
    __pipeline_memcpy_async(to.reading + place, from.reading + at * kWide<T>, 16);
    __pipeline_memcpy_async(to.writing + place, from.writing + at * kWide<T>, 16);
  }
  const auto copy_slice = [&](Acc<T>* y, const Acc<T>* x, int rows) {
    const auto copy = [&]<int kUnit>(std::integral_constant<int, kUnit>) {
      constexpr int kUnits = kSlice / kUnit;
      for (int at = threadIdx.x; at < rows * kUnits; at += kThreads) {
        const int row = at / kUnits, column = at % kUnits * kUnit;
        if (column < columns)
          __pipeline_memcpy_async(y + row * kSlice + column, x + row * from.stride + column, kUnit * sizeof(Acc<T>));
      }
    };
    constexpr int kUnit = kWide<Acc<T>>;
    from.stride % kUnit == 0 ? copy(std::integral_constant<int, kUnit>()) : copy(std::integral_constant<int, 1>());
  };
  copy_slice(to.added, from.added, shape.size);
  if (more) copy_slice(to.more, from.more, shape.key_size);
}

// For each entry of a slice, done(sum, row, column) with sum = start(row, column) + left right. right [depth, kSlice],
// rows kRow apart; left [rows, depth], or [depth, rows] when it is transposed, rows `stride` apart. An entry is always
// the same thread's.
template <bool kTransposed, class T, class Start, class Done>
__device__ __forceinline__ void product(const T* left, int stride, const T* right, int rows, int depth,
                                        const Start& start, const Done& done) {
  if constexpr (kTensorCores<T>) {
    constexpr int kSide = static_cast<int>(kTile);
    for (int row = threadIdx.x / 32 * kSide; row < rows; row += kThreads / 32 * kSide) {
      SumTile tile;
      tile.each([&](float& sum, int i, int j) { sum = start(row + i, j); });
#pragma unroll 4
      for (int d = 0; d < depth; d += kSide)
        tile.add(LeftTile<kTransposed>(kTransposed ? left + d * stride + row : left + row * stride + d, stride),
                 RightTile(right + d * kRow, kRow));
      tile.each([&](float& sum, int i, int j) { done(sum, row + i, j); });
    }
  } else {
    const int column = threadIdx.x % kSlice;
    for (int row = threadIdx.x / kSlice; row < rows; row += kThreads / kSlice) {
      T sum = start(row, column);
      for (int d = 0; d < depth; ++d)
        sum += (kTransposed ? left[d * stride + row] : left[row * stride + d]) * right[d * kRow + column];
      done(sum, row, column);
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
  T* const rounded_state = reinterpret_cast<T*>(state + key_size * kSlice);
  T* const rounded_token = rounded_state + key_size * kRow;  // [size, kSlice]: what the tokens write
  unsigned char* const copies = reinterpret_cast<unsigned char*>(rounded_token + size * kRow);  // by turns
  const int slices = (value_size + kSlice - 1) / kSlice, first_column = blockIdx.x % slices * kSlice;
  const int columns = min(kSlice, value_size - first_column);
  const int64_t owner = blockIdx.x / slices, sequence = owner / shape.heads, head = owner % shape.heads;
  const int64_t first = table.first_chunk_S1[sequence], steps = table.first_chunk_S1[sequence + 1] - first;
  const bool more = walk.more_NHKV != nullptr;

  const auto matrix_at = [&](int64_t step) {
    return (first + (backwards ? steps - 1 - step : step)) * shape.heads + head;
  };
  // The slice of one matrix of a tensor [.., rows, value_size].
  const auto slice = [&](auto* x, int64_t matrix, int rows) { return x + matrix * rows * value_size + first_column; };
  const auto given_at = [&](int64_t step) {
    const int64_t matrix = matrix_at(step), keys = matrix * size * key_size;
    return Given<T>{static_cast<const T*>(walk.reading_NHCK) + keys,
                    static_cast<const T*>(walk.writing_NHCK) + keys,
                    slice(static_cast<const A*>(walk.added_NHCV), matrix, size),
                    slice(static_cast<const A*>(walk.more_NHKV), matrix, key_size),
                    key_size,
                    value_size};
  };
  const auto copied_at = [&](int64_t step) {
    return copy_in<T>(copies + step % kStages * copy_bytes<T>(shape), shape);
  };
  const auto start_copy = [&](int64_t step) {
    if constexpr (kTensorCores<T>) {
      if (step < steps) copy_ahead<T>(given_at(step), copied_at(step), shape, columns, more);
      __pipeline_commit();
    }
  };
  // `entered`: that of the chunk which the state meets next.
  const auto keep = [&](A x, int row, int column, T* entered) {
    state[row * kSlice + column] = x;
    rounded_state[row * kRow + column] = to<T>(x);
    if (entered != nullptr && column < columns) entered[row * value_size + column] = to<T>(x);
  };
  const auto entered_at = [&](int64_t step) {
    return step < steps ? slice(static_cast<T*>(walk.entered_NHKV), matrix_at(step), key_size) : nullptr;
  };

  A* const kept = slice(static_cast<A*>(walk.state_SHKV), owner, key_size);
  for (int at = threadIdx.x; at < key_size * kSlice; at += kThreads) {
    const int row = at / kSlice, column = at % kSlice;
    keep(column < columns ? kept[row * value_size + column] : A(0), row, column, entered_at(0));
  }
  const auto whole_at = [&](int64_t step) {
    return step < steps ? static_cast<const A*>(walk.whole_NH)[matrix_at(step)] : A(0);
  };
  for (int64_t step = 0; step + 1 < kStages; ++step) start_copy(step);
  A next_whole = whole_at(0);  // read a step before its use
  for (int64_t step = 0; step < steps; ++step) {
    const A whole = next_whole;
    next_whole = whole_at(step + 1);
    const auto here = [&] {
      if constexpr (kTensorCores<T>)
        return copied_at(step);
      else
        return given_at(step);
    }();
    if constexpr (kTensorCores<T>) __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // this step's copies are there, the step before is over
    T* const written = slice(static_cast<T*>(walk.written_NHCV), matrix_at(step), size);
    product<false>(
        static_cast<const T*>(here.reading), here.key_stride, static_cast<const T*>(rounded_state), size, key_size,
        [&](int row, int column) { return column < columns ? here.added[row * here.stride + column] : A(0); },
        [&](A x, int row, int column) {
          rounded_token[row * kRow + column] = to<T>(x);
          if (column < columns) written[row * value_size + column] = to<T>(x);
        });
    start_copy(step + kStages - 1);  // a chunk has fewer rows of tiles than there are warps: the others come here first
    __syncthreads();
    T* const entered = entered_at(step + 1);
    product<true>(
        static_cast<const T*>(here.writing), here.key_stride, static_cast<const T*>(rounded_token), key_size, size,
        [&](int row, int column) {
          const A added = more && column < columns ? here.more[row * here.stride + column] : A(0);
          return whole * state[row * kSlice + column] + added;
        },
        [&](A x, int row, int column) { keep(x, row, column, entered); });
  }
  __syncthreads();
  for (int at = threadIdx.x; at < key_size * kSlice; at += kThreads)
    if (at % kSlice < columns) kept[at / kSlice * value_size + at % kSlice] = state[at];
}

}  // namespace

void walk_delta_states(Element type, const DeltaWalk& walk, int64_t heads, int64_t size, int64_t key_size,
                       int64_t value_size, const ChunkTable& table, bool backwards, Stream stream) {
  with_type(type, [&]<class T>(T) {
    const int64_t blocks = table.sequences * heads * blocks_for(value_size, kSlice);
    const Shape shape{static_cast<int>(heads), static_cast<int>(size), static_cast<int>(key_size),
                      static_cast<int>(value_size)};
    const size_t bytes = key_size * kSlice * sizeof(Acc<T>) + (key_size + size) * kRow * sizeof(T) +
                         (kTensorCores<T> ? kStages * copy_bytes<T>(shape) : 0);
    allow_shared_memory(walk_slices<T>, bytes);
    walk_slices<T><<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(walk, shape, table, backwards);
  });
  check_launch("walk_delta_states");
}

}  // namespace flashmorph::cuda
