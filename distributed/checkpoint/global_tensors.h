#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/model/parameter.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// The whole tensors behind sharded parameters, put together on rank 0 of the world in the order of their names; empty
// elsewhere. All have one dtype. Collective over the first data rank's replica; the other data ranks hold copies and
// only pass.
NamedTensors gather_global(const Parameters& parameters, Mesh& mesh);

// Rank 0 writes the whole tensors as one safetensors file, atomically; returns on every rank when it is there.
void save_global(const std::filesystem::path& file, const Parameters& parameters, Mesh& mesh,
                 const std::map<std::string, std::string>& metadata);

}  // namespace flashmorph
