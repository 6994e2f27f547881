#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "core/io/mapped_file.h"

namespace flashmorph {

// The content of a file of a corpus, from its start: as it lies, or unpacked where it is gzip or zstd (which its first
// bytes say, not its name). BadInput for other packings, for damaged ones, and for a Git LFS pointer.
class InputText {
 public:
  explicit InputText(const std::filesystem::path& path);
  ~InputText();

  std::string_view next();    // what comes next, until the next call; empty at the end
  void skip(uint64_t bytes);  // of the content; to the end where there are fewer
  bool packed() const { return unpacker_ != nullptr; }
  uint64_t bytes_read() const { return read_; }  // of the file
  uint64_t file_bytes() const { return file_.content().size(); }

  class Unpacker;

 private:
  MappedFile file_;
  uint64_t read_ = 0;
  std::unique_ptr<Unpacker> unpacker_;
};

}  // namespace flashmorph
