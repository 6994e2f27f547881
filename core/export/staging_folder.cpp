#include "core/export/staging_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

fs::path neighbour(const fs::path& place, const char* role) {
  return place.parent_path() / fmt::format(".{}.{}", place.filename().string(), role);
}

void sync(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (!synced) throw std::system_error(error, std::generic_category(), folder.string());
}

}  // namespace

StagingFolder::StagingFolder(const fs::path& place) : place_(place), path_(neighbour(place, "partial")) {
  fs::remove_all(path_);
  fs::create_directories(path_);
}

StagingFolder::~StagingFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void StagingFolder::move_to_place() {
  const fs::path old = neighbour(place_, "old");
  fs::remove_all(old);
  if (fs::exists(place_)) fs::rename(place_, old);
  fs::rename(path_, place_);
  sync(place_.parent_path());
  fs::remove_all(old);
}

}  // namespace flashmorph
