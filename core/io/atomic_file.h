#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

// Writes `content` to a hidden sibling, syncs file and folder, and renames it over `path`: a reader sees the old
// file or the new one, never a part. Throws std::system_error naming the file when any step fails.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

// The same for content in pieces, so that large files need not be put together in memory first.
void write_file_atomically(const std::filesystem::path& path, const std::vector<std::string_view>& pieces);

// Where a file is while it is written: in the same folder, its name behind a dot, with `ending`.
std::filesystem::path hidden_sibling(const std::filesystem::path& path, const std::string& ending);

}  // namespace flashmorph
