#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/io/model_files.h"

namespace flashmorph {

// SHA256SUMS of a folder: "HASH  NAME", a line for each file beside it, as sha256sum -c reads.
void write_checksums(const std::filesystem::path& folder);

// BadInput with a fault for each file that is not what SHA256SUMS says. A folder without SHA256SUMS passes.
void check_checksums(const std::filesystem::path& folder);

// The files of a model's folder that decide what a run makes of it: config.json, tokenizer.json and the weights.
std::vector<std::filesystem::path> deciding_files(const std::filesystem::path& folder, const ModelFiles& files);
// Of a model, from the SHA-256 of each of them.
std::string hash_of_model(const std::vector<std::string>& sha256);
// Reads them for it. `between_reads` is called now and then, and may throw: it takes its time.
std::string hash_of_model(
    const std::filesystem::path& folder, const ModelFiles& files, const std::function<void()>& between_reads = [] {});

}  // namespace flashmorph
