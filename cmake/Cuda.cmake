# The CUDA side, libflashmorph_cuda.so: never linked, opened at run time when device.kind is cuda.
set(FLASHMORPH_CUDA AUTO CACHE STRING "build libflashmorph_cuda.so: AUTO (where nvcc is found), ON or OFF")
set(FLASHMORPH_CUDA_ARCHITECTURES 90a-real CACHE STRING "CUDA architectures to build for, as CMAKE_CUDA_ARCHITECTURES")
set(FLASHMORPH_HAS_CUDA OFF)
if(FLASHMORPH_CUDA STREQUAL OFF)
  return()
endif()

find_program(NVCC nvcc HINTS /usr/local/cuda/bin)
if(NOT NVCC)
  if(FLASHMORPH_CUDA STREQUAL ON)
    message(FATAL_ERROR "FLASHMORPH_CUDA is ON and there is no nvcc; put it on the PATH or set NVCC")
  endif()
  message(STATUS "no nvcc: device.kind cuda will not be available")
  return()
endif()

set(CMAKE_CUDA_COMPILER "${NVCC}")
set(CMAKE_CUDA_ARCHITECTURES "${FLASHMORPH_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # the one that torch has loaded
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
enable_language(CUDA)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # which CMake 3.25 does not know yet
set(FLASHMORPH_HAS_CUDA ON)

add_library(torch_cuda INTERFACE IMPORTED)
target_include_directories(torch_cuda INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}
                           "${FLASHMORPH_TORCH_DIR}/../nvidia/nccl/include")
target_link_libraries(torch_cuda INTERFACE torch_cpu "${FLASHMORPH_TORCH_DIR}/lib/libc10_cuda.so"
                      "${FLASHMORPH_TORCH_DIR}/../nvidia/cu13/lib/libcudart.so.13"
                      "${FLASHMORPH_TORCH_DIR}/../nvidia/nccl/lib/libnccl.so.2")
