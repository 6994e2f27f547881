#pragma once

#include <filesystem>

namespace flashmorph {

// A folder under construction: a hidden sibling of its place. It is gone with its content unless it was moved there.
class StagingFolder {
 public:
  explicit StagingFolder(const std::filesystem::path& place);
  ~StagingFolder();
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // In place of what is there, if anything; the place is whole or absent at any moment.
  void move_to_place();

 private:
  std::filesystem::path place_, path_;
};

}  // namespace flashmorph
