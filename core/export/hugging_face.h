#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"

namespace flashmorph {

// A hybrid as whole tensors, and what stands beside them in its folder.
struct ExportContent {
  std::filesystem::path source;                             // the teacher's folder: config.json, the tokenizer's files
  std::vector<std::pair<std::string, at::Tensor>> tensors;  // by global name, on the CPU
  std::vector<int64_t> full_layers;                         // the others are linear
  MixerSection mixer;
  std::string model_card;  // README.md, Markdown
};

// Writes a folder that transformers loads with trust_remote_code: config.json, model.safetensors,
// modeling_flashmorph.py, README.md, the tokenizer. It is made as a hidden neighbour of `folder` and renamed, so
// `folder` is whole or absent; one that is there already is replaced. Throws BadInput for a teacher folder that cannot
// be used.
void export_hugging_face(const std::filesystem::path& folder, const ExportContent& content);

}  // namespace flashmorph
