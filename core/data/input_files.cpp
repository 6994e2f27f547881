#include "core/data/input_files.h"

#include <glob.h>

#include <algorithm>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

bool is_hidden(const std::filesystem::path& path) { return path.filename().string().starts_with("."); }

std::vector<std::filesystem::path> files_below(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (auto entry = std::filesystem::recursive_directory_iterator(folder); entry != end(entry); ++entry) {
    if (entry->is_directory() && is_hidden(entry->path())) entry.disable_recursion_pending();
    if (entry->is_regular_file() && !is_hidden(entry->path())) files.push_back(entry->path());
  }
  std::ranges::sort(files);
  return files;
}

std::vector<std::filesystem::path> matches_of(const std::string& pattern) {
  glob_t found{};
  std::vector<std::filesystem::path> files;
  if (glob(pattern.c_str(), GLOB_MARK, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc; ++i)
      if (const std::string path = found.gl_pathv[i]; !path.ends_with('/')) files.emplace_back(path);
  globfree(&found);
  return files;
}

}  // namespace

std::vector<std::filesystem::path> input_files(const std::filesystem::path& path) {
  const bool is_pattern = path.string().find_first_of("*?[") != std::string::npos && !std::filesystem::exists(path);
  const bool is_folder = std::filesystem::is_directory(path);
  if (!is_pattern && !is_folder) return {path};
  const std::vector<std::filesystem::path> files = is_folder ? files_below(path) : matches_of(path.string());
  if (files.empty()) throw BadInput(path.string(), is_folder ? "is a folder without files" : "matches no file");
  return files;
}

}  // namespace flashmorph
