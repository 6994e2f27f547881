#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace flashmorph {

// GPT-2's alphabet: every byte as one printable character.
const std::array<std::string, 256>& character_of_byte();

// The bytes that valid UTF-8 in the alphabet stands for; nothing when any other character is in it.
std::optional<std::string> bytes_of_alphabet(std::string_view text);

}  // namespace flashmorph
