#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/mapped_file.h"

namespace flashmorph {

// One tensor of a safetensors file as its header declares it.
struct TensorEntry {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t offset;  // bytes from the start of the data section
  uint64_t bytes;
};

// A safetensors file, memory-mapped and checked when opened (safetensors_header.h says how). Every fault is a BadInput
// that names the file and the tensor.
class SafetensorsFile {
 public:
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& file);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // A view of the mapped bytes (read-only by convention; it keeps the mapping alive). Shape and dtype as stored.
  at::Tensor tensor(const std::string& name) const;

 private:
  explicit SafetensorsFile(const std::filesystem::path& path) : path_(path), mapped_(path) {}

  std::filesystem::path path_;
  MappedFile mapped_;
  std::string_view data_;  // the data section
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
  std::weak_ptr<const SafetensorsFile> self_;
};

// Writes CPU tensors (made contiguous) atomically, in the given order.
void write_safetensors(const std::filesystem::path& file,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace flashmorph
