#pragma once

#include <string_view>

namespace flashmorph {

// Some of Shakespeare's plays, embedded when the program is built (tests/data/text).
std::string_view plays();

}  // namespace flashmorph
