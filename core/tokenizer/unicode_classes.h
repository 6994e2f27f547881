#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace flashmorph {

// Classes of characters as the `tokenizers` package knows them, in the form of a PCRE2 class's content. PCRE2 may be of
// an older Unicode, so that what versions 15 and 16 added is spelled out.

// A general category (Lu, Nd, ...) or a group of them (L, M, N, P, S, Z), as \p{} names it; nothing for other names.
std::optional<std::string> class_of_category(std::string_view name);

// Those that steps of a tokenizer name, as whole PCRE2 classes: Digits, Punctuation, StripAccents, Whitespace's words
// and all white space.
std::string numeric_class();
std::string punctuation_class();
std::string accent_class();
std::string word_class_content();
inline constexpr const char* kWhiteSpace = "\\p{White_Space}";

}  // namespace flashmorph
