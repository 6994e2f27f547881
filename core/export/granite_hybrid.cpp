#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>

#include "core/base/bad_input.h"
#include "core/export/export_format.h"
#include "core/mixer/convolved.h"
#include "core/model/weights.h"

// granitemoehybrid (GraniteMoeHybridForCausalLM of transformers): Mamba-2 beside full attention as Llama's, Granite's
// or Qwen2's, without remote code. What this file does and undoes:
//   - the feed-forward is its shared expert, gate and up in one tensor; it has no other experts;
//   - Mamba-2's projections are one tensor in the order z, v, k, q, dt, its convolutions one in the order v, k, q;
//   - biases of queries, keys and values bring one of the output, of zeros where the teacher has none.
// Letters: H heads, K head size, D hidden.

namespace flashmorph {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kModelType = "granitemoehybrid";

// A tensor of the format is several of ours, one below the other.
struct Joined {
  std::string theirs;
  std::vector<std::pair<std::string, int64_t>> ours;  // and their rows
  std::vector<int64_t> columns;                       // the rest of their shape
};

std::vector<Joined> joined_of(const ModelSpec& model, int64_t layer, bool full) {
  const int64_t D = model.hidden, H = model.heads, C = model.heads * model.head_dim, F = model.intermediate;
  const std::string prefix = layer_prefix(layer), mlp = prefix + "mlp.", shared = prefix + "shared_mlp.";
  std::vector<Joined> all = {
      {shared + "input_linear.weight", {{mlp + "gate_proj.weight", F}, {mlp + "up_proj.weight", F}}, {D}},
      {shared + "output_linear.weight", {{mlp + "down_proj.weight", D}}, {F}}};
  if (full) return all;
  const std::string own = prefix + "linear_attn.", mamba = prefix + "mamba.";
  all.push_back({mamba + "in_proj.weight",
                 {{own + "z_proj.weight", C},
                  {own + "v_proj.weight", C},
                  {own + "k_proj.weight", C},
                  {own + "q_proj.weight", C},
                  {own + "dt_proj.weight", H}},
                 {D}});
  const auto convolutions = [&](const std::string& kind) -> std::vector<std::pair<std::string, int64_t>> {
    return {{own + "v_conv." + kind, C}, {own + "k_conv." + kind, C}, {own + "q_conv." + kind, C}};
  };
  all.push_back({mamba + "conv1d.weight", convolutions("weight"), {kTaps}});
  all.push_back({mamba + "conv1d.bias", convolutions("bias"), {}});
  for (const char* name : {"A_log", "dt_bias", "D"}) all.push_back({mamba + name, {{own + name, H}}, {}});
  all.push_back({mamba + "norm.weight", {{own + "norm.weight", C}}, {}});
  all.push_back({mamba + "out_proj.weight", {{own + "out_proj.weight", D}}, {C}});
  return all;
}

bool is_joined(const std::string& name) {
  for (const char* part : {".linear_attn.", ".mlp.", ".mamba.", ".shared_mlp."})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

bool is_convolution(const std::string& theirs) { return theirs.ends_with("conv1d.weight"); }  // [channels, 1, taps]

class GraniteHybrid : public ExportFormat {
 public:
  std::string name() const override { return kModelType; }
  bool has_gguf() const override { return true; }
  const char* transformers() const override { return "5.23"; }  // before, its norm is over all groups at once

  std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const override {
    if (mixer.kind != "mamba2") return fmt::format("its linear attention is mamba2, not {}", mixer.kind);
    std::string difference = beyond_granite(model);
    if (difference.empty() && !model.no_rope.empty()) difference = "layers without rotation";
    if (difference.empty() && model.mlp_bias) difference = "bias of the feed-forward";
    if (!difference.empty()) return fmt::format("it has no {}, {} does", difference, model.model_type);
    if (model.heads * model.head_dim % model.hidden != 0)
      return fmt::format("its heads' {} channels must be a multiple of the {} hidden ones",
                         model.heads * model.head_dim, model.hidden);
    return "";
  }

  Json config(const HybridSpec& hybrid, const Json& teacher) const override {
    const ModelSpec& model = hybrid.model;
    Json config = decoder_config("GraniteMoeHybridForCausalLM", kModelType, model, teacher);
    config.update(granite_multipliers(model));
    config.update(Json{{"shared_intermediate_size", model.intermediate},
                       {"position_embedding_type", "rope"},
                       {"num_local_experts", 0},
                       {"num_experts_per_tok", 0},
                       {"layer_types", layer_types(hybrid.full, kNames)},
                       {"mamba_n_heads", model.heads},
                       {"mamba_n_groups", model.heads},
                       {"mamba_d_head", model.head_dim},
                       {"mamba_d_state", model.head_dim},
                       {"mamba_d_conv", kTaps},
                       {"mamba_expand", model.heads * model.head_dim / model.hidden},
                       {"mamba_conv_bias", true},
                       {"mamba_proj_bias", false}});
    // SGLang's class knows the older names alone, and takes a theta of 10000 where they are missing.
    config["rope_theta"] = model.rope.theta;
    if (model.rope.kind != Rope::Kind::plain) config["rope_scaling"] = config["rope_parameters"];
    return config;
  }

  NamedTensors tensors(const HybridSpec& hybrid, const NamedTensors& own) const override {
    const std::map<std::string, at::Tensor> by_name(own.begin(), own.end());
    NamedTensors written;
    for (const auto& [name, tensor] : own)
      if (!is_joined(name)) written.emplace_back(name, tensor);
    for (int64_t layer = 0; layer < hybrid.model.layers; ++layer) {
      const bool full = hybrid.full[static_cast<size_t>(layer)];
      for (const Joined& joined : joined_of(hybrid.model, layer, full)) {
        std::vector<at::Tensor> parts;
        for (const auto& [name, rows] : joined.ours) parts.push_back(by_name.at(name));
        const at::Tensor whole = at::cat(parts);
        written.emplace_back(joined.theirs, is_convolution(joined.theirs) ? whole.unsqueeze(1) : whole);
      }
      if (full && lacks_output_bias(hybrid.model)) written.push_back(no_output_bias(hybrid.model, layer, own));
    }
    return written;
  }

  // As a Granite whose multipliers may be neutral.
  HybridSpec hybrid_of(const ConfigJson& config) const override {
    nlohmann::json teacher = config.values();
    teacher["model_type"] = "granite";
    teacher.erase("layer_types");
    HybridSpec hybrid{.model = ModelSpec::of(ConfigJson(teacher, config.file())), .mixer = {}, .full = {}};
    hybrid.mixer.kind = "mamba2";
    hybrid.full = full_layers(config, hybrid.model.layers, kNames);
    const ModelSpec& model = hybrid.model;
    for (const auto& [key, expected] : {std::pair<const char*, int64_t>{"mamba_n_heads", model.heads},
                                        {"mamba_n_groups", model.heads},
                                        {"mamba_d_head", model.head_dim},
                                        {"mamba_d_state", model.head_dim},
                                        {"mamba_d_conv", kTaps},
                                        {"num_local_experts", 0},
                                        {"shared_intermediate_size", model.intermediate}})
      if (const int64_t found = config.size_from_0(key, -1); found != expected)
        config.fail(key, fmt::format("is {}, only {} is supported", found, expected));
    return hybrid;
  }

  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const override {
    std::map<std::string, TensorPart> own;
    for (const std::string& name : files.names())
      if (!is_joined(name)) own[name] = {name, files.shape(name)};
    for (int64_t layer = 0; layer < hybrid.model.layers; ++layer)
      for (const Joined& joined : joined_of(hybrid.model, layer, hybrid.full[static_cast<size_t>(layer)]))
        separate(joined, own);
    return files.under(own);
  }

 private:
  // Older transformers and other engines know these; newer ones rename them.
  static constexpr LayerNames kNames{"attention", "mamba"};

  static void separate(const Joined& joined, std::map<std::string, TensorPart>& own) {
    const bool convolution = is_convolution(joined.theirs);
    std::vector<int64_t> whole = joined.columns;
    if (convolution) whole.insert(whole.begin(), 1);
    whole.insert(whole.begin(), 0);
    for (const auto& [name, rows] : joined.ours) whole[0] += rows;
    int64_t first = 0;
    for (const auto& [name, rows] : joined.ours) {
      own[name] = {joined.theirs, whole, [first, rows = rows, convolution](const at::Tensor& all) {
                     const at::Tensor part = all.narrow(0, first, rows);
                     return convolution ? part.squeeze(1) : part;
                   }};
      first += rows;
    }
  }
};

}  // namespace

const ExportFormat& granite_hybrid_format() {
  static const GraniteHybrid format;
  return format;
}

}  // namespace flashmorph
