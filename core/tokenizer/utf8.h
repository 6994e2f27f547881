#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flashmorph {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

std::string utf8_of(uint32_t code_point);
size_t utf8_length(char lead);  // bytes of the character of valid UTF-8 that starts with `lead`

char32_t code_point(std::string_view character);  // of one character of valid UTF-8
bool is_white_space(std::string_view character);  // Unicode's White_Space
size_t leading_space(std::string_view text);      // bytes of White_Space in front of valid UTF-8
size_t trailing_space(std::string_view text);     // the same at its end

// The text with each broken sequence replaced by one U+FFFD, as Unicode recommends (section 3.9, maximal subparts).
std::string valid_utf8(std::string_view text);

size_t invalid_utf8_at(std::string_view text);  // the first byte that is not part of valid UTF-8, or npos

// Unicode's normalization forms of valid UTF-8, as the `tokenizers` package computes them: NFC, NFD, NFKC, NFKD.
enum class NormalForm { kC, kD, kCompatibleC, kCompatibleD };
std::string normal_form(std::string_view text, NormalForm form);

std::string lower_case(std::string_view text);  // of valid UTF-8, character by character, by Unicode 17

}  // namespace flashmorph
