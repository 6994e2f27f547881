#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "core/io/model_files.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// The SHA-256 of this rank's share of the files that decide a model, every ranks-th, behind one another. It speaks with
// nobody, and may run in a thread of its own. `between_reads` is called now and then by several threads, and may throw.
std::string hashes_of_share(
    const std::filesystem::path& folder, const ModelFiles& files, int rank, int ranks,
    const std::function<void()>& between_reads = [] {});

// hash_of_model (core/io/checksums.h) on every rank, from the shares of all. Collective.
std::string hash_of_shares(const std::string& share, Communicator& world);

// Both. Collective.
std::string hash_of_model(const std::filesystem::path& folder, const ModelFiles& files, Communicator& world);

}  // namespace flashmorph
