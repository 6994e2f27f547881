#pragma once

#include <filesystem>
#include <string_view>

namespace flashmorph {

// A regular file's bytes, mapped for reading as long as this lives. BadInput when it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view content() const { return content_; }

 private:
  std::string_view content_;
};

}  // namespace flashmorph
