#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace flashmorph::test {

// The bytes of numbers as the format writes them.
template <class Number>
std::string bytes_of(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

inline void write_file(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

// An index written from the byte table of the format, for sequences given by length and documents by first sequence.
struct IndexBytes {
  std::string magic{"MMIDIDX\0\0", 9};
  uint64_t version = 1;
  uint8_t element = 4;
  std::vector<int32_t> lengths;
  std::vector<int64_t> offsets;
  std::vector<int64_t> documents;

  std::string content() const {
    return magic + bytes_of(std::vector{version}) + bytes_of(std::vector{element}) +
           bytes_of(std::vector<uint64_t>{lengths.size()}) + bytes_of(std::vector<uint64_t>{documents.size()}) +
           bytes_of(lengths) + bytes_of(offsets) + bytes_of(documents);
  }
};

// The worked example: 3 sequences of 3, 2 and 4 int32 tokens in 2 documents.
inline IndexBytes worked_example() { return {.lengths = {3, 2, 4}, .offsets = {0, 12, 20}, .documents = {0, 2, 3}}; }

}  // namespace flashmorph::test
