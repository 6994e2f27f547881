#include "core/tokenizer/byte_alphabet.h"

#include <unordered_map>

#include "core/tokenizer/utf8.h"

namespace flashmorph {

const std::array<std::string, 256>& character_of_byte() {
  static const std::array<std::string, 256> alphabet = [] {
    std::array<std::string, 256> characters;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      characters[byte] = utf8_of(printable ? byte : next++);
    }
    return characters;
  }();
  return alphabet;
}

std::optional<std::string> bytes_of_alphabet(std::string_view text) {
  static const std::unordered_map<std::string_view, char> byte_of = [] {
    std::unordered_map<std::string_view, char> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes[character_of_byte()[byte]] = static_cast<char>(byte);
    return bytes;
  }();
  std::string bytes;
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const auto found = byte_of.find(text.substr(at, utf8_length(text[at])));
    if (found == byte_of.end()) return std::nullopt;
    bytes += found->second;
  }
  return bytes;
}

}  // namespace flashmorph
