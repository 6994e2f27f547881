// The header of a safetensors file: whatever the bytes, a BadInput or entries that lie inside of them.
#include <cstdlib>

#include "core/base/bad_input.h"
#include "core/io/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view content(reinterpret_cast<const char*>(data), size);
  try {
    const auto header = flashmorph::SafetensorsHeader::of(content, "fuzzed");
    for (const auto& [name, entry] : header.entries) {
      if (header.data_start + entry.offset + entry.bytes > size) std::abort();
      int64_t elements = 1;
      for (const int64_t length : entry.shape) elements *= length;
      if (static_cast<uint64_t>(elements) * flashmorph::SafetensorsHeader::element_bytes(entry.dtype) != entry.bytes)
        std::abort();
    }
  } catch (const flashmorph::BadInput&) {
  }
  return 0;
}
