#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/export/export_format.h"

namespace flashmorph {

// What a model folder holds, read from config.json and the headers of its weights alone.
struct ModelDescription {
  std::string format;      // "checkpoint", or the export format's name
  HybridSpec hybrid = {};  // of a checkpoint every layer is full
  at::ScalarType embedding_dtype = at::kFloat;
  std::vector<std::string> notes = {};  // of a checkpoint, as StoredModel has them
  int64_t tensors = 0;
  int64_t parameters = 0;
  int64_t bytes = 0;                             // of the weights on disk
  std::map<std::string, int64_t> parameters_as;  // parameters by stored dtype
  int64_t kv_bytes_per_token = 0;                // keys and values of the full layers, in the embedding's dtype
  int64_t full_kv_bytes_per_token = 0;           // the same if every layer were full
  int64_t state_bytes = 0;                       // what the linear layers remember, whatever the length

  int64_t full_layer_count() const;
  int64_t cache_bytes(int64_t tokens) const { return kv_bytes_per_token * tokens + state_bytes; }
};

// BadInput when the folder is no model that this program knows.
ModelDescription describe(const std::filesystem::path& folder);

}  // namespace flashmorph
