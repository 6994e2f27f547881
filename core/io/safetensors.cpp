#include "core/io/safetensors.h"

#include <ATen/ATen.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors_content.h"
#include "core/io/safetensors_header.h"

namespace flashmorph {
namespace {

using nlohmann::json;

const std::map<std::string, at::ScalarType>& dtypes() {
  static const std::map<std::string, at::ScalarType> known = {{"F64", at::kDouble},
                                                              {"F32", at::kFloat},
                                                              {"F16", at::kHalf},
                                                              {"BF16", at::kBFloat16},
                                                              {"F8_E4M3", at::kFloat8_e4m3fn},
                                                              {"F8_E5M2", at::kFloat8_e5m2},
                                                              {"I64", at::kLong},
                                                              {"I32", at::kInt},
                                                              {"I16", at::kShort},
                                                              {"I8", at::kChar},
                                                              {"U64", at::kUInt64},
                                                              {"U32", at::kUInt32},
                                                              {"U16", at::kUInt16},
                                                              {"U8", at::kByte},
                                                              {"BOOL", at::kBool}};
  return known;
}

std::string dtype_name(at::ScalarType type) {
  for (const auto& [name, known] : dtypes())
    if (known == type) return name;
  TORCH_CHECK(false, "safetensors cannot hold ", c10::toString(type));
}

// The 8 bytes of length and the JSON, padded so that the data starts at a multiple of 8.
std::string header_of(const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(!header.contains(name), "two tensors are named ", name);
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {
        {"dtype", dtype_name(tensor.scalar_type())}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (size_t i = 0; i < 8; ++i) length += static_cast<char>(text.size() >> (8 * i) & 255);
  return length + text;
}

}  // namespace

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile(path));
  SafetensorsHeader header = SafetensorsHeader::of(file->mapped_.content(), path.string());
  for (auto& [name, entry] : header.entries)
    file->entries_.emplace(name,
                           TensorEntry{dtypes().at(entry.dtype), std::move(entry.shape), entry.offset, entry.bytes});
  file->metadata_ = std::move(header.metadata);
  file->data_ = file->mapped_.content().substr(header.data_start);
  file->self_ = file;
  return file;
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw BadInput(path_.string(), "has no tensor " + name);
  const TensorEntry& entry = found->second;
  auto* data = const_cast<char*>(data_.data() + entry.offset);
  const at::TensorOptions options(entry.dtype);
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) == 0)
    return at::from_blob(
        data, entry.shape, [keep = self_.lock()](void*) {}, options);
  const at::Tensor aligned = at::empty(entry.shape, options);  // kernels may assume alignment, the format does not
  std::memcpy(aligned.data_ptr(), data, entry.bytes);
  return aligned;
}

SafetensorsContent::SafetensorsContent(const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                                       const std::map<std::string, std::string>& metadata)
    : header_(header_of(tensors, metadata)), pieces_({header_}) {
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& host = on_host_.emplace_back(tensor.detach().cpu().contiguous());
    pieces_.emplace_back(static_cast<const char*>(host.data_ptr()), host.nbytes());
  }
}

void write_safetensors(const std::filesystem::path& file,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_file_atomically(file, SafetensorsContent(tensors, metadata).pieces());
}

}  // namespace flashmorph
