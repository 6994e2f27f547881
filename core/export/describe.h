#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/model/model_spec.h"

namespace flashmorph {

// What a model folder holds, read from config.json and the headers of its weights alone.
struct ModelDescription {
  ModelSpec spec;
  std::vector<int64_t> full_layers;             // the others are linear
  int64_t tensors = 0;
  int64_t parameters = 0;
  int64_t bytes = 0;                            // of the weights on disk
  std::map<std::string, int64_t> parameters_as;  // parameters by stored dtype
  int64_t kv_bytes_per_token = 0;               // keys and values of the full layers, in the weights' dtype
  int64_t state_bytes = 0;                      // states of the linear layers, whatever the length

  int64_t cache_bytes(int64_t tokens) const { return kv_bytes_per_token * tokens + state_bytes; }
};

// BadInput when the folder is no model that this program knows.
ModelDescription describe(const std::filesystem::path& folder);

}  // namespace flashmorph
