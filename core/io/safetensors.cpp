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
#include <optional>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr uint64_t kLongestHeader = 100'000'000;

const std::map<std::string, at::ScalarType>& dtypes() {
  static const std::map<std::string, at::ScalarType> known = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
      {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};
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

    TensorEntry entry{dtypes().at(dtype.get<std::string>()), {}, (*range)[0], 0};
    uint64_t bytes = c10::elementSize(entry.dtype);
    for (const uint64_t size : *shape) {
      if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) || __builtin_mul_overflow(bytes, size, &bytes))
        fail("has a shape too large for any file");
      entry.shape.push_back(static_cast<int64_t>(size));
    }
    if ((*range)[1] < (*range)[0] || (*range)[1] > data_bytes_)
      fail("lies at bytes " + std::to_string((*range)[0]) + " to " + std::to_string((*range)[1]) + " of " +
           std::to_string(data_bytes_) + " data bytes");
    entry.bytes = (*range)[1] - (*range)[0];
    if (entry.bytes != bytes)
      fail("takes " + std::to_string(entry.bytes) + " bytes, its shape and dtype need " + std::to_string(bytes));
    return entry;
  }

  void no_overlap(const std::map<std::string, TensorEntry>& entries) const {
    std::vector<std::pair<const std::string*, const TensorEntry*>> sorted;
    for (const auto& [name, entry] : entries)
      if (entry.bytes > 0) sorted.emplace_back(&name, &entry);
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second->offset < b.second->offset; });
    for (size_t i = 1; i < sorted.size(); ++i)
      if (sorted[i].second->offset < sorted[i - 1].second->offset + sorted[i - 1].second->bytes)
        throw BadInput(file_ + ": tensor " + *sorted[i].first, "overlaps tensor " + *sorted[i - 1].first);
  }

 private:
  std::string file_;
  uint64_t data_bytes_;
};

std::string dtype_name(at::ScalarType type) {
  for (const auto& [name, known] : dtypes())
    if (known == type) return name;
  TORCH_CHECK(false, "safetensors cannot hold ", c10::toString(type));
}

}  // namespace

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& what) { throw BadInput(path.string(), what); };
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;

  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  file->size_ = regular ? static_cast<uint64_t>(status.st_size) : 0;
  void* mapped = file->size_ >= 8 ? mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  close(descriptor);
  if (!regular) fail("is not a regular file");
  if (file->size_ < 8) fail("is " + std::to_string(file->size_) + " bytes long, too short for a safetensors header");
  if (mapped == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(errno));
  file->bytes_ = static_cast<const unsigned char*>(mapped);

  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | file->bytes_[i];
  if (header_bytes > kLongestHeader || header_bytes > file->size_ - 8)
    fail("declares a header of " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(file->size_));
  file->data_start_ = 8 + header_bytes;
  const json header = json::parse(file->bytes_ + 8, file->bytes_ + file->data_start_, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) fail("has a header that is not a JSON object");

  const HeaderCheck check(path.string(), file->size_ - file->data_start_);
  for (const auto& [name, description] : header.items()) {
    if (name != "__metadata__") {
      file->entries_.emplace(name, check.entry(name, description));
      continue;
    }
    if (!description.is_object()) fail("has a __metadata__ that is not a JSON object");
    for (const auto& [key, value] : description.items())
      if (value.is_string()) file->metadata_.emplace(key, value.get<std::string>());
  }
  check.no_overlap(file->entries_);
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
  return at::from_blob(data, entry.shape, [keep = self_.lock()](void*) {}, at::TensorOptions(entry.dtype));
}

void write_safetensors(const std::filesystem::path& file, const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t bytes = tensor.nbytes();
    header[name] = {{"dtype", dtype_name(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string content;
  content.reserve(8 + text.size() + offset);
  for (uint64_t length = text.size(), i = 0; i < 8; ++i, length >>= 8) content += static_cast<char>(length & 255);
  content += text;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor host = tensor.detach().cpu().contiguous();
    content.append(static_cast<const char*>(host.data_ptr()), host.nbytes());
  }
  write_file_atomically(file, content);
}

}  // namespace flashmorph
