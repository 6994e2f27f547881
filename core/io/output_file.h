#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace flashmorph {

// A file that is being written. Every failed step throws std::system_error naming the file.
class OutputFile {
 public:
  // Keeps the first `size` bytes of what is there (all of which must be) and goes on behind them; 0 starts anew.
  explicit OutputFile(const std::filesystem::path& path, uint64_t size = 0);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::string_view content) const;
  void sync() const;
  bool try_lock() const;  // false: another process holds it

 private:
  std::filesystem::path path_;
  int descriptor_;
};

// Throws std::system_error of errno as "PATH: STEP"; closes `descriptor` first when one is given.
[[noreturn]] void throw_errno(const std::filesystem::path& path, const char* step, int descriptor = -1);

void sync_path(const std::filesystem::path& path);       // a file's content, or a folder's entries, to the disk
void sync_folder_of(const std::filesystem::path& file);  // so that a rename survives a crash

}  // namespace flashmorph
