#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

namespace flashmorph {

// All that a save does to the disk, one step a call; a test puts in a disk that fills up, or a process that dies, at
// any of them. A failing step throws std::system_error naming the path.
class FileOperations {
 public:
  virtual ~FileOperations() = default;

  virtual void make_folder(const std::filesystem::path& folder);  // and those above it; it may be there already
  virtual void write(const std::filesystem::path& file,
                     const std::vector<std::string_view>& pieces);  // anew; not synced
  virtual void sync(const std::filesystem::path& path);             // a file's content, or a folder's entries
  virtual void rename(const std::filesystem::path& from, const std::filesystem::path& to);
  virtual void remove(const std::filesystem::path& path);  // with all that it holds; it may be gone already
};

FileOperations& real_files();

}  // namespace flashmorph
