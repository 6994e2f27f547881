#include "core/io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/io/lfs_pointer.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr uint64_t kLongestHeader = 100'000'000;

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

  SafetensorsHeader::Entry entry(const std::string& name, const json& description) const {
    const auto fail = [&](const std::string& what) { throw BadInput(file_ + ": tensor " + name, what); };
    if (!description.is_object()) fail("is not described by a JSON object");
    const json dtype = description.value("dtype", json());
    const uint64_t element = dtype.is_string() ? SafetensorsHeader::element_bytes(dtype.get<std::string>()) : 0;
    if (element == 0) fail("has the unknown dtype " + dtype.dump());
    const auto shape = unsigned_list(description.value("shape", json()));
    const auto range = unsigned_list(description.value("data_offsets", json()));
    if (!shape) fail("has no shape of non-negative integers");
    if (!range || range->size() != 2) fail("has no data_offsets of two non-negative integers");

    const auto [start, end] = std::pair((*range)[0], (*range)[1]);
    if (end < start || end > data_bytes_)
      fail("lies at bytes " + std::to_string(start) + " to " + std::to_string(end) + " of " +
           std::to_string(data_bytes_) + " data bytes");
    SafetensorsHeader::Entry entry{dtype.get<std::string>(), {}, start, end - start};
    const auto needed = bytes_of(*shape, element);
    if (!needed) fail("has a shape too large for any file");
    if (entry.bytes != *needed)
      fail("takes " + std::to_string(entry.bytes) + " bytes, its shape and dtype need " + std::to_string(*needed));
    entry.shape.assign(shape->begin(), shape->end());
    return entry;
  }

  // The tensors must fill the data section: an overlap aliases, a gap or a rest means a damaged file.
  void filled_by(const std::map<std::string, SafetensorsHeader::Entry>& entries) const {
    std::vector<std::pair<const std::string*, const SafetensorsHeader::Entry*>> sorted;
    for (const auto& [name, entry] : entries) sorted.emplace_back(&name, &entry);
    const auto range = [](const auto& named) { return std::pair(named.second->offset, named.second->bytes); };
    std::sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) { return range(a) < range(b); });
    uint64_t filled = 0;
    for (const auto& [name, entry] : sorted) {
      if (entry->offset != filled)
        throw BadInput(
            file_ + ": tensor " + *name,
            std::string(entry->offset < filled ? "overlaps the tensor before it" : "leaves a gap before it") +
                ": starts at data byte " + std::to_string(entry->offset) + ", expected " + std::to_string(filled));
      filled += entry->bytes;
    }
    if (filled != data_bytes_)
      throw BadInput(file_,
                     "has " + std::to_string(data_bytes_) + " data bytes, its tensors fill " + std::to_string(filled));
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

}  // namespace

uint64_t SafetensorsHeader::element_bytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> known = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4},
      {"I16", 2}, {"I8", 1},  {"U64", 8}, {"U32", 4},  {"U16", 2},     {"U8", 1},      {"BOOL", 1}};
  const auto found = known.find(dtype);
  return found == known.end() ? 0 : found->second;
}

SafetensorsHeader SafetensorsHeader::of(std::string_view content, const std::string& file) {
  refuse_lfs_pointer(content, file);
  if (content.size() < 8)
    throw BadInput(file, "is " + std::to_string(content.size()) + " bytes long, too short for a safetensors header");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | static_cast<unsigned char>(content[i]);
  const uint64_t most = std::min<uint64_t>(kLongestHeader, content.size() - 8);
  if (header_bytes > most)
    throw BadInput(file, "declares a header of " + std::to_string(header_bytes) + " bytes, expected at most " +
                             std::to_string(most));
  SafetensorsHeader read;
  read.data_start = 8 + header_bytes;
  // A tensor that is described twice is the last description's, as for the safetensors package; were the two different,
  // the first one's bytes would be a gap.
  const json header = parse_json(content.substr(8, header_bytes), file + ": header", RepeatedKeys::last_counts);
  if (!header.is_object()) throw BadInput(file + ": header", "is not a JSON object");

  const HeaderCheck check(file, content.size() - read.data_start);
  for (const auto& [name, description] : header.items()) {
    if (name == "__metadata__")
      read.metadata = read_metadata(description, file);
    else
      read.entries.emplace(name, check.entry(name, description));
  }
  check.filled_by(read.entries);
  return read;
}

}  // namespace flashmorph
