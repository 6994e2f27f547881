#pragma once

#include <filesystem>
#include <string_view>

namespace flashmorph {

// Writes `content` to a hidden neighbour, syncs file and folder, and renames it over `path`: a reader sees the old
// file or the new one, never a part. Throws std::system_error naming the file when any step fails.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

}  // namespace flashmorph
