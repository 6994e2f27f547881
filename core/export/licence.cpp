#include "core/export/licence.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <string_view>

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestName = 80;
constexpr int kLinesRead = 200;

std::string trimmed(std::string_view text) {
  constexpr std::string_view kAround = " \t\r\"'";
  const size_t first = text.find_first_not_of(kAround);
  return first == text.npos ? "" : std::string(text.substr(first, text.find_last_not_of(kAround) - first + 1));
}

bool is_plain(const std::string& name) {
  const auto is_known = [](unsigned char c) {
    return std::isalnum(c) != 0 || std::string_view(" .-_+,()").find(static_cast<char>(c)) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= kLongestName && std::ranges::all_of(name, is_known);
}

// What stands behind `key:` between the two lines --- at the file's start.
std::string front_matter(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  std::string line;
  if (!std::getline(in, line) || trimmed(line) != "---") return "";
  for (int i = 0; i < kLinesRead && std::getline(in, line) && trimmed(line) != "---"; ++i) {
    if (!line.starts_with(key + ":")) continue;
    std::string value = trimmed(std::string_view(line).substr(key.size() + 1));
    if (value.empty() && std::getline(in, line) && trimmed(line).starts_with("- "))  // a list: its first
      value = trimmed(trimmed(line).substr(2));
    return value;
  }
  return "";
}

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  for (int i = 0; i < kLinesRead && std::getline(in, line); ++i)
    if (!trimmed(line).empty()) return trimmed(line);
  return "";
}

}  // namespace

Licence licence_of(const fs::path& folder) {
  const fs::path card = folder / "README.md";
  std::string named = front_matter(card, "license");
  if (named == "other") named = front_matter(card, "license_name");
  if (is_plain(named)) return {named, "README.md"};
  for (const char* file : {"LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"})
    if (const std::string line = first_line(folder / file); is_plain(line)) return {line, file};
  return {};
}

}  // namespace flashmorph
