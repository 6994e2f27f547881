#pragma once

#include <string>

namespace flashmorph {

// An Oniguruma expression (Ruby syntax, Unicode 16, as the `tokenizers` package runs it) as a PCRE2 one that matches
// the same. BadInput naming `where` for what the two engines read differently: anchors, look-behind, nested classes,
// properties and escapes that are not listed here.
std::string pcre2_of(const std::string& oniguruma, const std::string& where);

}  // namespace flashmorph
