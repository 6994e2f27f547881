# Outside libraries as imported targets: torch_cpu, MPI::MPI_CXX, protobuf::libprotobuf, yaml-cpp, ...
# The order matters: torch's include folder holds its own protobuf and fmt, so the system's are found and
# marked first.
if(FLASHMORPH_CCACHE)
  find_program(CCACHE ccache REQUIRED)
  # Without the sloppiness it keeps nothing that has precompiled headers.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
if(EXISTS "${FLASHMORPH_VENV}/bin/mpicxx")  # else a site's own MPI
  set(MPI_HOME "${FLASHMORPH_VENV}")
endif()
set(MPI_CXX_SKIP_MPICXX ON)
find_package(MPI REQUIRED COMPONENTS CXX)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
find_package(prometheus-cpp REQUIRED COMPONENTS core pull)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(PkgConfig REQUIRED)
find_package(ZLIB REQUIRED)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)

if(NOT FLASHMORPH_TORCH_DIR)
  file(GLOB FLASHMORPH_TORCH_DIR "${FLASHMORPH_VENV}/lib/python3*/site-packages/torch")
endif()
if(NOT EXISTS "${FLASHMORPH_TORCH_DIR}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch not found in ${FLASHMORPH_VENV}; run deploy/install.sh, or set FLASHMORPH_TORCH_DIR")
endif()

get_filename_component(system_protobuf "${Protobuf_INCLUDE_DIRS}/google/protobuf" REALPATH)
get_target_property(system_fmt fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/first/google")
file(CREATE_LINK "${system_protobuf}" "${CMAKE_BINARY_DIR}/first/google/protobuf" SYMBOLIC)
file(CREATE_LINK "${system_fmt}/fmt" "${CMAKE_BINARY_DIR}/first/fmt" SYMBOLIC)
include_directories(BEFORE "${CMAKE_BINARY_DIR}/first")

# Not find_package(Torch): that would link CUDA, which takes seconds a rank to start.
add_library(torch_cpu SHARED IMPORTED)
set_target_properties(torch_cpu PROPERTIES
  FLASHMORPH_TORCH ON
  IMPORTED_LOCATION "${FLASHMORPH_TORCH_DIR}/lib/libtorch_cpu.so"
  INTERFACE_INCLUDE_DIRECTORIES "${FLASHMORPH_TORCH_DIR}/include;${FLASHMORPH_TORCH_DIR}/include/torch/csrc/api/include"
  INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CXX>:-pthread>"  # as other libraries ask for: precompiled headers serve one set of flags
  INTERFACE_LINK_LIBRARIES "${FLASHMORPH_TORCH_DIR}/lib/libc10.so")

# Most of a file's compile time is torch's headers.
flashmorph_precompiled(flashmorph_headers HEADERS <ATen/ATen.h> LINKS torch_cpu)
