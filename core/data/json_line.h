#pragma once

#include <string>
#include <string_view>

namespace flashmorph {

// The string at `key` of a JSON object, as UTF-8; a lone surrogate in it becomes U+FFFD. Nothing else of the object is
// read: its other values may be what JSON does not know (NaN), broken text, or nested to any depth. BadInput naming
// `where` when the object does not end, `key` is missing or twice there, or its value is no string of valid UTF-8.
std::string text_at(std::string_view object, std::string_view key, const std::string& where);

}  // namespace flashmorph
