#include "core/tokenizer/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>

namespace flashmorph {
namespace {

struct Range {
  char32_t first, last;
};

// Marks that Unicode gained after version 9, whose tables the `tokenizers` package normalizes by: to it they are plain
// characters that neither move nor combine. And U+11A7, which utf8proc drops after a Hangul syllable.
constexpr Range kPlain[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x11A7, 0x11A7},   {0x1715, 0x1715},   {0x1ABF, 0x1ACE},
    {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

// Characters that Unicode gained after version 9 as compatible with others: to the package they are not.
constexpr Range kIncompatible[] = {{0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},   {0xAB69, 0xAB69},
                                   {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA},
                                   {0x1E030, 0x1E06D}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

bool is_in(std::span<const Range> ranges, char32_t code) {
  const auto range = std::lower_bound(ranges.begin(), ranges.end(), code,
                                      [](const Range& at, char32_t value) { return at.last < value; });
  return range != ranges.end() && range->first <= code;
}

// Letters that Unicode gained, or gained small ones for, after version 15, with the distance to these.
constexpr struct {
  char32_t first, last;
  int32_t distance;
} kNewerSmall[] = {{0x1C89, 0x1C89, 1},      {0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
                   {0xA7CC, 0xA7CC, 1},      {0xA7CE, 0xA7CE, 1},
                   {0xA7D2, 0xA7D2, 1},      {0xA7D4, 0xA7D4, 1},
                   {0xA7DA, 0xA7DA, 1},      {0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
                   {0x10D50, 0x10D65, 0x20}, {0x16EA0, 0x16EB8, 0x1B}};

char32_t small(char32_t code) {
  for (const auto& [first, last, distance] : kNewerSmall)
    if (first <= code && code <= last) return code + static_cast<char32_t>(distance);
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}

struct Sequence {
  size_t bytes;
  bool valid;
};

// The character at the front, or as much of one as is there before it breaks off.
Sequence front(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const size_t size = utf8_length(text[0]);
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;   // below: a longer form than needed
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;  // above: a surrogate, or past U+10FFFF
  for (size_t i = 1; i < size; ++i) {
    if (byte(i) < low || byte(i) > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {size, true};
}

int options_of(NormalForm form) {
  const bool composes = form == NormalForm::kC || form == NormalForm::kCompatibleC;
  const bool compatible = form == NormalForm::kCompatibleC || form == NormalForm::kCompatibleD;
  return UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
}

void append_normal(std::string_view text, int options, std::string& out) {
  utf8proc_uint8_t* normal = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &normal, static_cast<utf8proc_option_t>(options));
  if (size < 0) throw std::runtime_error(std::string("utf8proc_map: ") + utf8proc_errmsg(size));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(normal, &std::free);
  out.append(reinterpret_cast<const char*>(normal), static_cast<size_t>(size));
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<unsigned char>(byte) < 0x80; });
}

}  // namespace

std::string utf8_of(uint32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  return {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)};
}

size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

char32_t code_point(std::string_view character) {
  utf8proc_int32_t code = 0;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(character.data()),
                   static_cast<utf8proc_ssize_t>(character.size()), &code);
  return static_cast<char32_t>(code);
}

bool is_white_space(std::string_view character) {
  if (character.size() < 2) return character == " " || (character >= "\t" && character <= "\r");
  const char32_t code = code_point(character);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  size_t start = 0;  // of the sound stretch
  for (size_t at = 0; at < text.size();) {
    const auto [bytes, whole] = front(text.substr(at));
    if (!whole) {
      valid.append(text, start, at - start).append(kReplacementCharacter);
      start = at + bytes;
    }
    at += bytes;
  }
  return valid.append(text, start);
}

size_t invalid_utf8_at(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto [bytes, whole] = front(text.substr(at));
    if (!whole) return at;
    at += bytes;
  }
  return std::string_view::npos;
}

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && is_white_space(text.substr(at, utf8_length(text[at])))) at += utf8_length(text[at]);
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
    if (!is_white_space(text.substr(start, end - start))) break;
    end = start;
  }
  return text.size() - end;
}

std::string normal_form(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  const int options = options_of(form);
  const auto is_plain = [&](char32_t code) {
    return is_in(kPlain, code) || ((options & UTF8PROC_COMPAT) != 0 && is_in(kIncompatible, code));
  };
  std::string normal;
  size_t start = 0;  // of the stretch to normalize
  for (size_t at = 0; at < text.size();) {
    const std::string_view character = text.substr(at, utf8_length(text[at]));
    at += character.size();
    if (character.size() == 1 || !is_plain(code_point(character))) continue;
    append_normal(text.substr(start, at - character.size() - start), options, normal);
    normal += character;
    start = at;
  }
  append_normal(text.substr(start), options, normal);
  return normal;
}

std::string lower_case(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const char32_t code = code_point(text.substr(at, utf8_length(text[at])));
    result += utf8_of(small(code));
    if (code == 0x130) result += "\xCC\x87";  // capital I with a dot keeps it
  }
  return result;
}

}  // namespace flashmorph
