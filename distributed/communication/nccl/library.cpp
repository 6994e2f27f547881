#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime.h>

#include "distributed/communication/cuda_library.h"
#include "distributed/communication/nccl/nccl_communicator.h"

namespace {

std::string card_name(int card) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, card) == cudaSuccess ? properties.name : "an unknown card";
}

constexpr flashmorph::CudaLibrary kLibrary = {
    .card_count = [] { return static_cast<int>(c10::cuda::device_count()); },
    .card_name = card_name,
    .use_card = [](int card) { c10::cuda::set_device(static_cast<c10::DeviceIndex>(card)); },
    .nccl = flashmorph::nccl_communicator,
};

}  // namespace

extern "C" const flashmorph::CudaLibrary* flashmorph_cuda_library() { return &kLibrary; }
