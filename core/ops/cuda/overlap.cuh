#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/ptx.cuh"

// Kernels that a stream is given one after the other and that yet run side by side (PTX ISA, "griddepcontrol"; CUDA,
// "Programmatic Dependent Launch"). One that is launched early may begin once every block of the kernel before it has
// called let_next_begin or has ended. So it may wait for what those blocks tell: all of them run, and none waits for
// it. Where kernels take turns, under a profiler say, all has been told when it begins.

namespace flashmorph::cuda {

__device__ __forceinline__ void let_next_begin() {
  FLASHMORPH_HOPPER("griddepcontrol.launch_dependents;" ::: "memory");
}

// Until the kernel before is over, which a kernel launched early must not end before: the stream goes on behind it.
__device__ __forceinline__ void await_kernel_before() { FLASHMORPH_HOPPER("griddepcontrol.wait;" ::: "memory"); }

// By one thread, for all that it has written and, before a barrier, others have.
__device__ __forceinline__ void tell(unsigned* told) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(told)) : "memory");
}

// How often it has been told; what was written before that can be read.
__device__ __forceinline__ unsigned times_told(const unsigned* told) {
  unsigned times = 0;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(times) : "l"(__cvta_generic_to_global(told)) : "memory");
  return times;
}

// Read by copy_block too, when this thread starts it.
__device__ __forceinline__ void publish_to_block_copies() {
  FLASHMORPH_HOPPER("fence.proxy.async.global;" ::: "memory");
}

// `early`: let the kernel begin beside the one before it in the stream.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), bool early, unsigned blocks, dim3 threads, size_t bytes, Stream stream,
            const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  check_call(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace flashmorph::cuda
