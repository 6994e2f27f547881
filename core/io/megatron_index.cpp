#include "core/io/megatron_index.h"

#include <array>
#include <cstring>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr uint64_t kArrays = 34;  // where they start
constexpr std::array<const char*, 9> kElements = {"none",  "uint8",   "int8",    "int16", "int32",
                                                  "int64", "float64", "float32", "uint16"};

template <class Number>
Number number_at(std::string_view bytes, uint64_t at) {
  Number value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

template <class Number>
void append(std::string& bytes, Number value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

int bytes_of_element(unsigned code, const std::string& file) {
  if (code == 4) return 4;
  if (code == 8) return 2;
  throw BadInput(file, "holds elements of " +
                           (code < kElements.size() ? kElements[code] : "code " + std::to_string(code)) +
                           ", expected uint16 or int32 tokens");
}

}  // namespace

MegatronIndex::MegatronIndex(std::string_view content, uint64_t bin_bytes, const std::string& file)
    : content_(content) {
  const auto fail = [&](const std::string& what) { throw BadInput(file, what); };
  if (!content.starts_with(kMagic)) fail("does not start with MMIDIDX, as an index of a Megatron token file does");
  if (content.size() < kArrays) fail("is " + std::to_string(content.size()) + " bytes long, too short for a header");
  if (const auto version = number_at<uint64_t>(content, 9); version != 1)
    fail("has version " + std::to_string(version) + ", expected 1");
  token_bytes_ = bytes_of_element(number_at<uint8_t>(content, 17), file);

  sequences_ = number_at<uint64_t>(content, 18);
  const auto entries = number_at<uint64_t>(content, 26);
  const uint64_t room = content.size() - kArrays;
  if (sequences_ > room / 12 || entries > room / 8 || entries < 1)
    fail("declares " + std::to_string(sequences_) + " sequences and " + std::to_string(entries) +
         " document entries in " + std::to_string(content.size()) + " bytes");
  documents_ = entries - 1;
  const uint64_t expected = kArrays + 12 * sequences_ + 8 * entries;
  if (content.size() == expected + sequences_ && sequences_ > 0)
    fail("has a mode per sequence: multimodal data are not supported");
  if (content.size() != expected)
    fail("is " + std::to_string(content.size()) + " bytes long, its header needs " + std::to_string(expected));

  uint64_t end = 0;
  for (uint64_t s = 0; s < sequences_; ++s) {
    const auto length = number_at<int32_t>(content, kArrays + 4 * s);
    if (length < 0) fail("gives sequence " + std::to_string(s) + " the length " + std::to_string(length));
    if (offset(s) != end)
      fail("puts sequence " + std::to_string(s) + " at byte " + std::to_string(static_cast<int64_t>(offset(s))) +
           " of the .bin, expected " + std::to_string(end) + " (offsets that overflowed look like this)");
    end += static_cast<uint64_t>(length) * static_cast<uint64_t>(token_bytes_);
  }
  if (end != bin_bytes)
    fail("describes " + std::to_string(end) + " bytes of tokens, the .bin has " + std::to_string(bin_bytes));
  tokens_ = end / static_cast<uint64_t>(token_bytes_);

  int64_t before = 0;
  for (uint64_t d = 0; d < entries; ++d) {
    const auto first = number_at<int64_t>(content, kArrays + 12 * sequences_ + 8 * d);
    if (first < before || (d == 0 && first != 0) || static_cast<uint64_t>(first) > sequences_)
      fail("has document entry " + std::to_string(d) + " at sequence " + std::to_string(first) + ", expected " +
           (d == 0 ? "0" : "one from " + std::to_string(before) + " to " + std::to_string(sequences_)));
    before = first;
  }
  if (static_cast<uint64_t>(before) != sequences_)
    fail("ends its documents at sequence " + std::to_string(before) + ", expected " + std::to_string(sequences_));
}

uint64_t MegatronIndex::offset(uint64_t sequence) const {
  return number_at<uint64_t>(content_, kArrays + 4 * sequences_ + 8 * sequence);
}

uint64_t MegatronIndex::document_start(uint64_t document) const {
  const auto sequence = number_at<uint64_t>(content_, kArrays + 12 * sequences_ + 8 * document);
  return sequence == sequences_ ? tokens_ : offset(sequence) / static_cast<uint64_t>(token_bytes_);
}

void write_megatron_index(std::string_view lengths, int token_bytes,
                          const std::function<void(std::string_view)>& write) {
  const uint64_t sequences = lengths.size() / sizeof(int32_t);
  std::string header(kMagic);
  append<uint64_t>(header, 1);
  append<uint8_t>(header, token_bytes == 2 ? 8 : 4);
  append<uint64_t>(header, sequences);
  append<uint64_t>(header, sequences + 1);
  write(header);
  write(lengths);

  constexpr size_t kPiece = 1 << 16;
  std::string piece;
  const auto put = [&](uint64_t value) {
    append(piece, value);
    if (piece.size() < kPiece) return;
    write(piece);
    piece.clear();
  };
  uint64_t offset = 0;
  for (uint64_t s = 0; s < sequences; ++s) {
    put(offset);
    offset += static_cast<uint64_t>(number_at<int32_t>(lengths, 4 * s)) * static_cast<uint64_t>(token_bytes);
  }
  for (uint64_t d = 0; d <= sequences; ++d) put(d);
  write(piece);
}

}  // namespace flashmorph
