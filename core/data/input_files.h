#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace flashmorph {

// The files that a path means, in the order of their names: itself; of a folder all files in it and below, but hidden
// ones; of a pattern (* ? [ ]) that is no file's name, all that match. BadInput when there are none.
std::vector<std::filesystem::path> input_files(const std::filesystem::path& path);

}  // namespace flashmorph
