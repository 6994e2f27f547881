#include "core/io/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace flashmorph {

void throw_errno(const std::filesystem::path& path, const char* step, int descriptor) {
  const int error = errno;  // before anything else can change it
  if (descriptor >= 0) close(descriptor);
  throw std::system_error(error, std::generic_category(), path.string() + ": " + step);
}

OutputFile::OutputFile(const std::filesystem::path& path, uint64_t size)
    : path_(path), descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (size == 0 ? O_TRUNC : 0), 0644)) {
  if (descriptor_ < 0) throw_errno(path_, "open");
  const off_t end = lseek(descriptor_, 0, SEEK_END), wanted = static_cast<off_t>(size);
  if (end < wanted) errno = ENODATA;
  if (end < wanted || ftruncate(descriptor_, wanted) != 0 || lseek(descriptor_, wanted, SEEK_SET) != wanted)
    throw_errno(path_, "go on", descriptor_);
}

OutputFile::~OutputFile() { close(descriptor_); }

void OutputFile::write(std::string_view content) const {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor_, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_errno(path_, "write");
    content.remove_prefix(static_cast<size_t>(written));
  }
}

void OutputFile::sync() const {
  if (fsync(descriptor_) != 0) throw_errno(path_, "fsync");
}

bool OutputFile::try_lock() const {
  if (flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return true;
  if (errno != EWOULDBLOCK) throw_errno(path_, "flock");
  return false;
}

void sync_path(const std::filesystem::path& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(path, "open");
  if (fsync(descriptor) != 0) throw_errno(path, "fsync", descriptor);
  close(descriptor);
}

void sync_folder_of(const std::filesystem::path& file) { sync_path(file.has_parent_path() ? file.parent_path() : "."); }

}  // namespace flashmorph
