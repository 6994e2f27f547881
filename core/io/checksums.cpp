#include "core/io/checksums.h"

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <string>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"

namespace flashmorph {
namespace {

constexpr const char* kName = "SHA256SUMS";

using Checksums = std::map<std::string, std::string>;  // by the file's name

Checksums written_in(const std::filesystem::path& file) {
  constexpr size_t kDigits = 64, kNameAt = kDigits + 2;
  Checksums sums;
  std::ifstream in(file, std::ios::binary);
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.size() <= kNameAt || line.find_first_not_of("0123456789abcdef") != kDigits ||
        line.substr(kDigits, 2) != "  ")
      throw BadInput(file.string(),
                     "line " + std::to_string(number) + " is not 64 hexadecimal digits, two spaces and a file's name");
    sums[line.substr(kNameAt)] = line.substr(0, kDigits);
  }
  return sums;
}

}  // namespace

void write_checksums(const std::filesystem::path& folder) {
  Checksums sums;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_regular_file() && entry.path().filename() != kName)
      sums[entry.path().filename().string()] = sha256_of_file(entry.path());
  std::string text;
  for (const auto& [name, sum] : sums) text += sum + "  " + name + "\n";
  write_file_atomically(folder / kName, text);
}

void check_checksums(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kName;
  if (!std::filesystem::exists(file)) return;
  std::vector<Fault> faults;
  for (const auto& [name, sum] : written_in(file)) {
    const std::filesystem::path listed = folder / name;
    std::error_code missing;
    if (!std::filesystem::is_regular_file(listed, missing)) {
      faults.push_back({listed.string(), fmt::format("is missing; {} lists it", kName)});
    } else if (const std::string found = sha256_of_file(listed); found != sum) {
      faults.push_back({listed.string(), fmt::format("is damaged: its SHA-256 is {}, {} says {}", found, kName, sum)});
    }
  }
  if (!faults.empty()) throw BadInput(faults);
}

std::vector<std::filesystem::path> deciding_files(const std::filesystem::path& folder, const ModelFiles& files) {
  std::vector<std::filesystem::path> all = {folder / "config.json", folder / "tokenizer.json"};
  for (const std::filesystem::path& weights : files.files()) all.push_back(weights);
  return all;
}

std::string hash_of_model(const std::vector<std::string>& sha256) {
  std::string hashes;
  for (const std::string& one : sha256) hashes += one;
  return sha256_of_bytes(hashes.data(), hashes.size());
}

std::string hash_of_model(const std::filesystem::path& folder, const ModelFiles& files,
                          const std::function<void()>& between_reads) {
  std::vector<std::string> sha256;
  for (const std::filesystem::path& file : deciding_files(folder, files))
    sha256.push_back(sha256_of_file(file, between_reads));
  return hash_of_model(sha256);
}

}  // namespace flashmorph
