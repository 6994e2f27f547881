#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "core/io/model_files.h"

namespace flashmorph {

// SHA256SUMS of a folder: "HASH  NAME", a line for each file beside it, as sha256sum -c reads.
void write_checksums(const std::filesystem::path& folder);

// BadInput with a fault for each file that is not what SHA256SUMS says. A folder without SHA256SUMS passes.
void check_checksums(const std::filesystem::path& folder);

// Of all files of a model's folder that decide what a run makes of it: config.json, tokenizer.json and the weights.
// `between_reads` is called now and then, and may throw: reading them takes its time.
std::string hash_of_model(
    const std::filesystem::path& folder, const ModelFiles& files, const std::function<void()>& between_reads = [] {});

}  // namespace flashmorph
