#include "core/io/atomic_file.h"

#include "core/io/output_file.h"

namespace flashmorph {

std::filesystem::path hidden_sibling(const std::filesystem::path& path, const std::string& ending) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  return folder / ("." + path.filename().string() + ending);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  write_file_atomically(path, std::vector<std::string_view>{content});
}

void write_file_atomically(const std::filesystem::path& path, const std::vector<std::string_view>& pieces) {
  const std::filesystem::path hidden = hidden_sibling(path, ".part");
  try {
    const OutputFile file(hidden);
    for (const std::string_view piece : pieces) file.write(piece);
    file.sync();
    std::filesystem::rename(hidden, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(hidden, ignored);
    throw;
  }
  sync_folder_of(path);
}

}  // namespace flashmorph
