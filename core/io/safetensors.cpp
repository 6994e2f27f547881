#include "core/io/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"
#include "core/io/json_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr uint64_t kLongestHeader = 100'000'000;

const std::map<std::string, at::ScalarType>& dtypes() {
  static const std::map<std::string, at::ScalarType> known = {
      {"F64", at::kDouble},          {"F32", at::kFloat},        {"F16", at::kHalf},    {"BF16", at::kBFloat16},
      {"F8_E4M3", at::kFloat8_e4m3fn}, {"F8_E5M2", at::kFloat8_e5m2}, {"I64", at::kLong},   {"I32", at::kInt},
      {"I16", at::kShort},           {"I8", at::kChar},          {"U64", at::kUInt64},  {"U32", at::kUInt32},
      {"U16", at::kUInt16},          {"U8", at::kByte},          {"BOOL", at::kBool}};
  return known;
}

// Reads unsigned integers out of a JSON array, or nothing when it is anything else.
std::optional<std::vector<uint64_t>> unsigned_list(const json& value) {
  if (!value.is_array()) return std::nullopt;
  std::vector<uint64_t> list;
  for (const json& item : value) {
    if (!item.is_number_unsigned()) return std::nullopt;
    list.push_back(item.get<uint64_t>());
  }
  return list;
}

class HeaderCheck {
 public:
  HeaderCheck(std::string file, uint64_t data_bytes) : file_(std::move(file)), data_bytes_(data_bytes) {}

  TensorEntry entry(const std::string& name, const json& description) const {
    const auto fail = [&](const std::string& what) { throw BadInput(file_ + ": tensor " + name, what); };
    if (!description.is_object()) fail("is not described by a JSON object");
    const json dtype = description.value("dtype", json());
    if (!dtype.is_string() || !dtypes().contains(dtype.get<std::string>())) fail("has the unknown dtype " + dtype.dump());
    const auto shape = unsigned_list(description.value("shape", json()));
    const auto range = unsigned_list(description.value("data_offsets", json()));
    if (!shape) fail("has no shape of non-negative integers");
    if (!range || range->size() != 2) fail("has no data_offsets of two non-negative integers");

    const auto [start, end] = std::pair((*range)[0], (*range)[1]);
    if (end < start || end > data_bytes_)
      fail("lies at bytes " + std::to_string(start) + " to " + std::to_string(end) + " of " +
           std::to_string(data_bytes_) + " data bytes");
    TensorEntry entry{dtypes().at(dtype.get<std::string>()), {}, start, end - start};
    const auto needed = bytes_of(*shape, c10::elementSize(entry.dtype));
    if (!needed) fail("has a shape too large for any file");
    if (entry.bytes != *needed)
      fail("takes " + std::to_string(entry.bytes) + " bytes, its shape and dtype need " + std::to_string(*needed));
    entry.shape.assign(shape->begin(), shape->end());
    return entry;
  }

  // The tensors must fill the data section: an overlap aliases, a gap or a rest means a damaged file.
  void filled_by(const std::map<std::string, TensorEntry>& entries) const {
    std::vector<std::pair<const std::string*, const TensorEntry*>> sorted;
    for (const auto& [name, entry] : entries) sorted.emplace_back(&name, &entry);
    const auto range = [](const auto& named) { return std::pair(named.second->offset, named.second->bytes); };
    std::sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) { return range(a) < range(b); });
    uint64_t filled = 0;
    for (const auto& [name, entry] : sorted) {
      if (entry->offset != filled)
        throw BadInput(file_ + ": tensor " + *name,
                       std::string(entry->offset < filled ? "overlaps the tensor before it" : "leaves a gap before it") +
                           ": starts at data byte " + std::to_string(entry->offset) + ", expected " + std::to_string(filled));
      filled += entry->bytes;
    }
    if (filled != data_bytes_)
      throw BadInput(file_, "has " + std::to_string(data_bytes_) + " data bytes, its tensors fill " + std::to_string(filled));
  }

 private:
  // Nothing when the strides of such a tensor would not fit in int64_t, even where a size of 0 makes it empty.
  static std::optional<uint64_t> bytes_of(const std::vector<uint64_t>& shape, uint64_t element_bytes) {
    uint64_t bytes = element_bytes;
    for (const uint64_t size : shape)
      if (__builtin_mul_overflow(bytes, std::max<uint64_t>(size, 1), &bytes)) return std::nullopt;
    if (bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return std::find(shape.begin(), shape.end(), 0) == shape.end() ? bytes : 0;
  }

  std::string file_;
  uint64_t data_bytes_;
};

std::map<std::string, std::string> read_metadata(const json& metadata, const std::string& file) {
  if (!metadata.is_object()) throw BadInput(file, "has a __metadata__ that is not a JSON object");
  std::map<std::string, std::string> read;
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) throw BadInput(file + ": __metadata__." + key, "is not a string");
    read.emplace(key, value.get<std::string>());
  }
  return read;
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
    header[name] = {{"dtype", dtype_name(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (size_t i = 0; i < 8; ++i) length += static_cast<char>(text.size() >> (8 * i) & 255);
  return length + text;
}

std::string_view mapped(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& what) { throw BadInput(path.string(), what); };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* bytes = size >= 8 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  const int error = errno;
  close(descriptor);
  if (!regular) fail("is not a regular file");
  if (size < 8) fail("is " + std::to_string(size) + " bytes long, too short for a safetensors header");
  if (bytes == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(error));
  return {static_cast<const char*>(bytes), size};
}

}  // namespace

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  const std::string_view content = mapped(path);
  file->path_ = path;
  file->bytes_ = reinterpret_cast<const unsigned char*>(content.data());
  file->size_ = content.size();

  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | file->bytes_[i];
  if (header_bytes > kLongestHeader || header_bytes > file->size_ - 8)
    throw BadInput(path.string(), "declares a header of " + std::to_string(header_bytes) + " bytes, expected at most " +
                                      std::to_string(std::min(kLongestHeader, file->size_ - 8)));
  file->data_start_ = 8 + header_bytes;
  const json header = parse_json(content.substr(8, header_bytes), path.string() + ": header");
  if (!header.is_object()) throw BadInput(path.string() + ": header", "is not a JSON object");

  const HeaderCheck check(path.string(), file->size_ - file->data_start_);
  for (const auto& [name, description] : header.items()) {
    if (name == "__metadata__")
      file->metadata_ = read_metadata(description, path.string());
    else
      file->entries_.emplace(name, check.entry(name, description));
  }
  check.filled_by(file->entries_);
  file->self_ = file;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (bytes_ != nullptr) munmap(const_cast<unsigned char*>(bytes_), size_);
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw BadInput(path_.string(), "has no tensor " + name);
  const TensorEntry& entry = found->second;
  auto* data = const_cast<unsigned char*>(bytes_ + data_start_ + entry.offset);
  const at::TensorOptions options(entry.dtype);
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) == 0)
    return at::from_blob(data, entry.shape, [keep = self_.lock()](void*) {}, options);
  const at::Tensor aligned = at::empty(entry.shape, options);  // kernels may assume alignment, the format does not
  std::memcpy(aligned.data_ptr(), data, entry.bytes);
  return aligned;
}

void write_safetensors(const std::filesystem::path& file, const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string header = header_of(tensors, metadata);
  std::vector<std::string_view> pieces = {header};
  std::vector<at::Tensor> on_host;  // owns what the pieces point into
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& host = on_host.emplace_back(tensor.detach().cpu().contiguous());
    pieces.emplace_back(static_cast<const char*>(host.data_ptr()), host.nbytes());
  }
  write_file_atomically(file, pieces);
}

}  // namespace flashmorph
