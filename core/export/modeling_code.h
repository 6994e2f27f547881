#pragma once

#include <string_view>

namespace flashmorph {

// modeling_flashmorph.py, what transformers runs to load an exported folder, without its mixer's Branch; embedded when
// the program is built.
std::string_view modeling_code();

}  // namespace flashmorph
