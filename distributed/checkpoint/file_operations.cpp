#include "distributed/checkpoint/file_operations.h"

#include "core/io/output_file.h"

namespace flashmorph {

void FileOperations::make_folder(const std::filesystem::path& folder) { std::filesystem::create_directories(folder); }

void FileOperations::write(const std::filesystem::path& file, const std::vector<std::string_view>& pieces) {
  const OutputFile out(file);
  for (const std::string_view piece : pieces) out.write(piece);
}

void FileOperations::sync(const std::filesystem::path& path) { sync_path(path); }

void FileOperations::rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::filesystem::rename(from, to);
}

void FileOperations::remove(const std::filesystem::path& path) { std::filesystem::remove_all(path); }

FileOperations& real_files() {
  static FileOperations files;
  return files;
}

}  // namespace flashmorph
