#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace flashmorph {

// A decoder as config.json describes it: sizes and the differences between families as data.
struct ModelSpec {
  std::string model_type;     // qwen3
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double norm_epsilon = 1e-6;
  double rope_theta = 10000.0;
  bool query_key_norm = false;   // RMSNorm of each head's queries and keys before the rotation
  bool tied_embeddings = false;  // the output head is the embedding

  // Reads and checks config.json; BadInput for an unknown model_type (naming the known ones), a missing or mistyped
  // key, sizes that do not fit each other, and settings whose numbers we would get wrong (sliding windows, rope
  // scaling, attention bias).
  static ModelSpec open(const std::filesystem::path& folder);

  // BadInput when `tensor` ranks cannot split this model evenly; the message lists the sizes that can.
  void check_tensor_parallel(int64_t tensor) const;

  int64_t query_groups() const { return heads / kv_heads; }
};

}  // namespace flashmorph
