#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

// What the header of a safetensors file declares, checked: 8 bytes of little-endian length, then JSON, then the data.
// Format: https://github.com/huggingface/safetensors
struct SafetensorsHeader {
  struct Entry {
    std::string dtype;  // as the format names it, e.g. BF16
    std::vector<int64_t> shape;
    uint64_t offset;  // bytes from the start of the data section
    uint64_t bytes;
  };
  std::map<std::string, Entry> entries;
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;  // bytes from the start of the file

  // BadInput naming `file` and the tensor at fault: header length, JSON, dtypes, shapes against byte ranges, ranges
  // that leave the file, overlap, or leave gaps.
  static SafetensorsHeader of(std::string_view content, const std::string& file);

  // 0 for a name that the format does not know.
  static uint64_t element_bytes(const std::string& dtype);
};

}  // namespace flashmorph
