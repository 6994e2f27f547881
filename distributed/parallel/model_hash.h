#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "core/io/model_files.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// hash_of_model (core/io/checksums.h) on every rank, its files read side by side, a share of them by each rank.
// `between_reads` is called now and then, and may throw. Collective.
std::string hash_of_model(
    const std::filesystem::path& folder, const ModelFiles& files, Communicator& world,
    const std::function<void()>& between_reads = [] {});

}  // namespace flashmorph
