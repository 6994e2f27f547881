#include "distributed/communication/cuda_library.h"

#include <dlfcn.h>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

void* opened(const char* library) {
  void* const handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr)
    throw BadInput("device.kind", std::string("is cuda, which needs ") + library + ": " + dlerror());
  return handle;
}

}  // namespace

const CudaLibrary& open_cuda() {
  opened("libtorch_cuda.so");
  void* const ours = opened("libflashmorph_cuda.so");
  const auto find = reinterpret_cast<const CudaLibrary* (*)()>(dlsym(ours, "flashmorph_cuda_library"));
  if (find == nullptr)
    throw BadInput("device.kind", "libflashmorph_cuda.so is not of this program: it has no flashmorph_cuda_library");
  return *find();
}

}  // namespace flashmorph
