#pragma once

struct CUstream_st;

namespace flashmorph::cuda {

// How kernels get tensors: raw pointers and the type of what they point to, so that nvcc never sees ATen's headers.
enum class Element { float32, float64, bfloat16 };

using Stream = CUstream_st*;  // cudaStream_t

}  // namespace flashmorph::cuda
