#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace flashmorph {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* step) {
  const int error = errno;  // before anything else can change it
  throw std::system_error(error, std::generic_category(), path.string() + ": " + step);
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : path_(path), fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail(path_, "open");
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write_all(std::string_view content) const {
    while (!content.empty()) {
      const ssize_t written = ::write(fd_, content.data(), content.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path_, "write");
      content.remove_prefix(static_cast<size_t>(written));
    }
  }
  void sync() const {
    if (fsync(fd_) != 0) fail(path_, "fsync");
  }

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  write_file_atomically(path, std::vector<std::string_view>{content});
}

void write_file_atomically(const std::filesystem::path& path, const std::vector<std::string_view>& pieces) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const std::filesystem::path hidden = folder / ("." + path.filename().string() + ".part");
  try {
    const Descriptor file(hidden, O_WRONLY | O_CREAT | O_TRUNC);
    for (const std::string_view piece : pieces) file.write_all(piece);
    file.sync();
    std::filesystem::rename(hidden, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(hidden, ignored);
    throw;
  }
  Descriptor(folder, O_RDONLY | O_DIRECTORY).sync();
}

}  // namespace flashmorph
