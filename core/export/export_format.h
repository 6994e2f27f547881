#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"
#include "core/io/model_files.h"
#include "core/model/model_spec.h"

namespace flashmorph {

// A hybrid by its sizes: the teacher, the mixer of its linear layers, and which layers those are.
struct HybridSpec {
  ModelSpec model;
  MixerSection mixer;
  std::vector<bool> full;  // a layer each; the others are linear
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// A format that others load. Its tensors are a function of the hybrid's own (named as in this program), and back.
class ExportFormat {
 public:
  virtual ~ExportFormat() = default;
  virtual std::string name() const = 0;  // config.json's model_type

  // Why a hybrid of this teacher and mixer cannot be written in this format; "" when it can.
  virtual std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const = 0;

  // Whether transformers has to run code of the folder to load it.
  virtual bool brings_code() const { return false; }

  // The oldest transformers that computes what this program does.
  virtual const char* transformers() const { return "5"; }

  // Whether deploy/hf_to_gguf.py makes a file for llama.cpp of it.
  virtual bool has_gguf() const { return false; }

  // config.json, started from the teacher's; without dtype.
  virtual nlohmann::ordered_json config(const HybridSpec& hybrid, const nlohmann::ordered_json& teacher) const = 0;

  // Every tensor of the format, from every tensor of the hybrid; `dtype` is what the weights are stored in.
  virtual NamedTensors tensors(const HybridSpec& hybrid, const NamedTensors& own) const = 0;

  // Files beside config.json and the weights, by name.
  virtual std::map<std::string, std::string> more_files(const MixerSection&) const { return {}; }

  // Back from the files of an export: the hybrid, and its tensors under their own names. BadInput when they are not as
  // this format has them.
  virtual bool reads(const ConfigJson& config) const { return config.text("model_type", "") == name(); }
  virtual HybridSpec hybrid_of(const ConfigJson& config) const = 0;
  virtual ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const = 0;
};

// In the order of preference.
const std::vector<const ExportFormat*>& export_formats();

// The format that this config.json is written in; null when it is none of them.
const ExportFormat* format_of(const ConfigJson& config);

// The format of this name, or for "auto" the first without an obstacle. BadInput (stages.export.format) gives the
// reason.
const ExportFormat& export_format(const std::string& name, const ModelSpec& model, const MixerSection& mixer);

// What of a teacher's decoder Llama's has not, or Granite's, in words: "" when there is nothing.
std::string beyond_llama(const ModelSpec& model);
std::string beyond_granite(const ModelSpec& model);

// config.json as the decoders of transformers have it in common; what does not change the numbers is the teacher's.
nlohmann::ordered_json decoder_config(const char* architecture, const char* model_type, const ModelSpec& model,
                                      const nlohmann::ordered_json& teacher);

// Granite's four multipliers in config.json.
nlohmann::ordered_json granite_multipliers(const ModelSpec& model);

// Granite's classes have a bias of the output wherever queries, keys and values have one: of zeros for a teacher that
// has none.
bool lacks_output_bias(const ModelSpec& model);
std::pair<std::string, at::Tensor> no_output_bias(const ModelSpec& model, int64_t layer, const NamedTensors& own);

// Written as layer_types in config.json.
struct LayerNames {
  const char *full = "full_attention", *linear = "linear_attention";
};
std::vector<std::string> layer_types(const std::vector<bool>& full, const LayerNames& names = {});
std::vector<bool> full_layers(const ConfigJson& config, int64_t layers, const LayerNames& names = {});

}  // namespace flashmorph
