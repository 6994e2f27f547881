#pragma once

#include <filesystem>
#include <string>

#include "core/export/export_format.h"

namespace flashmorph {

// A hybrid as whole tensors, and what stands beside them in its folder.
struct ExportContent {
  std::filesystem::path source;  // the teacher's folder: config.json, the tokenizer's files
  HybridSpec hybrid;
  NamedTensors tensors;    // under their own names, on the CPU
  std::string model_card;  // README.md, Markdown; how to load the folder and its licence are put under its title
};

// What was read back before the folder got its name.
struct ExportReport {
  std::string format;
  int64_t tokens = 0;
  double largest_difference = 0.0;  // of a logit, between the hybrid and the files
};

// Writes a folder that transformers loads: config.json, model.safetensors, README.md, the tokenizer and what else the
// format has. It is made as a hidden sibling of `folder`, read back, run beside the hybrid on a few hundred tokens,
// and renamed when no logit differs by more than 2e-4, so `folder` is whole and right, or absent; one that is there
// already is replaced. Throws BadInput for a teacher's folder that cannot be used, std::runtime_error when the logits
// differ.
ExportReport export_hugging_face(const std::filesystem::path& folder, const ExportFormat& format,
                                 const ExportContent& content);

}  // namespace flashmorph
