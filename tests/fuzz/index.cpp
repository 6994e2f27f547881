// A Megatron .idx beside a .bin whose size the first two bytes give: whatever the bytes, a BadInput or documents in
// order.
#include <cstdlib>

#include "core/base/bad_input.h"
#include "core/io/megatron_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view content(reinterpret_cast<const char*>(data + 2), size - 2);
  try {
    const flashmorph::MegatronIndex index(content, data[0] + 256u * data[1], "fuzzed");
    uint64_t before = 0;
    for (uint64_t d = 0; d <= index.documents(); ++d) {
      if (index.document_start(d) < before) std::abort();
      before = index.document_start(d);
    }
    if (before != index.tokens()) std::abort();
  } catch (const flashmorph::BadInput&) {
  }
  return 0;
}
