#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/config/run_config.h"

namespace flashmorph {

// A file of a corpus, to be known again: its size, and the SHA-256 of its samples (below).
struct CorpusFile {
  std::string path;  // as the config names it, in UTF-8
  int64_t bytes = 0;
  std::string sha256;

  static CorpusFile of(
      const std::filesystem::path& path, const std::function<void()>& between_samples = [] {});
  bool operator==(const CorpusFile&) const = default;
};

// The files that the section's tokens come from, in its order: those of text, and of token files PREFIX.bin and
// PREFIX.idx. BadInput when one cannot be read.
std::vector<CorpusFile> corpus_files(
    const DataSection& data, const std::function<void()>& between_samples = [] {});

// What is read of a file to know it again: all of it, in pieces of `piece` bytes; of one that has more than `most` of
// them, so many, evenly spread, its first and last bytes among them. By default that is 1 GiB at most.
std::vector<std::string_view> samples_of(std::string_view content, size_t piece = 1 << 20, size_t most = 1 << 10);

}  // namespace flashmorph
