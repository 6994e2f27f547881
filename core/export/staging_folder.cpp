#include "core/export/staging_folder.h"

#include <system_error>

#include "core/io/atomic_file.h"
#include "core/io/output_file.h"

namespace flashmorph {

namespace fs = std::filesystem;

StagingFolder::StagingFolder(const fs::path& place) : place_(place), path_(hidden_sibling(place, ".partial")) {
  fs::remove_all(path_);
  fs::create_directories(path_);
}

StagingFolder::~StagingFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void StagingFolder::move_to_place() {
  const fs::path old = hidden_sibling(place_, ".old");
  fs::remove_all(old);
  if (fs::exists(place_)) fs::rename(place_, old);
  fs::rename(path_, place_);
  sync_folder_of(place_);
  fs::remove_all(old);
}

}  // namespace flashmorph
