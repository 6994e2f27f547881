// A config.json: whatever the bytes, a BadInput or sizes that fit each other.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/base/bad_input.h"
#include "core/model/model_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::filesystem::path folder = [] {
    std::filesystem::path path = "/dev/shm/flashmorph-fuzz-" + std::to_string(getpid());
    std::filesystem::create_directories(path);
    return path;
  }();
  std::ofstream(folder / "config.json", std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto spec = flashmorph::ModelSpec::open(folder);
    if (spec.heads < 1 || spec.kv_heads < 1 || spec.heads % spec.kv_heads != 0 || spec.layers < 1) std::abort();
  } catch (const flashmorph::BadInput&) {
  }
  return 0;
}
