#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "core/base/bad_input.h"

namespace flashmorph {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& what) { throw BadInput(path.string(), what); };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* bytes = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  const int error = errno;
  close(descriptor);
  if (!regular) fail("is not a regular file");
  if (bytes == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(error));
  content_ = {static_cast<const char*>(bytes), size};
}

MappedFile::~MappedFile() {
  if (!content_.empty()) munmap(const_cast<char*>(content_.data()), content_.size());
}

}  // namespace flashmorph
