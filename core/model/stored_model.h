#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/io/model_files.h"
#include "core/model/model_spec.h"

namespace flashmorph {

// A Hugging Face folder's model: what config.json and the stored tensors say together.
struct StoredModel {
  ModelSpec spec;
  ModelFiles weights;                   // under the names that weights.h reads, whatever the files call and join
  std::vector<std::string> notes = {};  // what a user should know: tensors that nothing uses, a head that is not tied

  // Tensors are found without the prefix "model.", fused (Phi-3's qkv_proj and gate_up_proj, experts as one tensor),
  // and under Mixtral's and OLMo-2's names. Where config.json ties the head to the embedding but another head is
  // stored, that one counts. BadInput for quantized weights (naming the tensors or the file that says so), adapters,
  // and tensors that are missing or misshapen.
  static StoredModel open(const std::filesystem::path& folder);

  // The spec alone, of config.json where there are no weights beside it.
  static ModelSpec spec_of(const std::filesystem::path& folder);
};

}  // namespace flashmorph
