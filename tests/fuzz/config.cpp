// A config.json: whatever the bytes, a BadInput or sizes that fit each other.
#include <cstdlib>
#include <fstream>

#include "core/base/bad_input.h"
#include "core/model/model_spec.h"
#include "tests/support/temporary_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const flashmorph::test::TemporaryFolder folder;
  std::ofstream(folder.path() / "config.json", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto spec = flashmorph::ModelSpec::open(folder.path());
    if (spec.heads < 1 || spec.kv_heads < 1 || spec.heads % spec.kv_heads != 0 || spec.layers < 1) std::abort();
  } catch (const flashmorph::BadInput&) {
  }
  return 0;
}
