#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>

#include "core/base/bad_input.h"
#include "core/export/export_format.h"
#include "core/mixer/convolved.h"
#include "core/model/weights.h"

// qwen3_5_text (Qwen3_5ForCausalLM of transformers 5): gated delta net beside full attention, without remote code.
// It differs from a Qwen3 with gated delta net branches by what this file does and undoes:
//   - its full attention multiplies by sigmoid(gate), the gate's rows in q_proj after each head's own: rows of zeros
//     make that 1/2, and o_proj is doubled, which is exact;
//   - its RMSNorms multiply by 1 + weight, except the one inside the linear attention;
//   - the linear attention's q, k and v, and their convolutions, are one tensor each.
// Letters: H heads, K head size, D hidden.

namespace flashmorph {
namespace {

using Json = nlohmann::ordered_json;

bool ends_with_any(const std::string& name, std::initializer_list<const char*> endings) {
  return std::ranges::any_of(endings, [&](const char* ending) { return name.ends_with(ending); });
}

bool is_shifted_norm(const std::string& name) {
  return name == "model.norm.weight" ||
         ends_with_any(name, {"layernorm.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight"});
}

// w - 1 in the dtype of w when 1 + (w - 1) gives w back there, else in float32 (16-bit dtypes below 1/2).
at::Tensor minus_one(const at::Tensor& w) {
  const at::Tensor exact = w.to(at::kDouble) - 1.0, stored = exact.to(w.scalar_type());
  const bool survives = at::equal((stored.to(at::kDouble) + 1.0).to(w.scalar_type()), w);
  return survives || c10::elementSize(w.scalar_type()) > 2 ? stored : exact.to(at::kFloat);
}

at::Tensor plus_one(const at::Tensor& w) { return (w.to(at::kDouble) + 1.0).to(w.scalar_type()); }

// [H*K, D] -> [H*2K, D], zeros after each head's rows.
at::Tensor with_gate_rows(const at::Tensor& q, int64_t head_dim) {
  const at::Tensor heads = q.unflatten(0, {-1, head_dim});
  return at::cat({heads, at::zeros_like(heads)}, 1).flatten(0, 1);
}

at::Tensor without_gate_rows(const at::Tensor& q, int64_t head_dim, const std::string& where) {
  const at::Tensor heads = q.unflatten(0, {-1, 2 * head_dim});
  if (!heads.narrow(1, head_dim, head_dim).eq(0).all().item<bool>())
    throw BadInput(where, "has gate rows that are not zero; only exports of flashmorph-dist are read");
  return heads.narrow(1, 0, head_dim).flatten(0, 1);
}

// The linear attention's names here and there.
constexpr const char* kProjections[] = {"q_proj.weight", "k_proj.weight", "v_proj.weight"};
constexpr const char* kConvolutions[] = {"q_conv.weight", "k_conv.weight", "v_conv.weight"};
constexpr std::pair<const char*, const char*> kRenamed[] = {{"z_proj.weight", "in_proj_z.weight"},
                                                            {"b_proj.weight", "in_proj_b.weight"},
                                                            {"a_proj.weight", "in_proj_a.weight"},
                                                            {"A_log", "A_log"},
                                                            {"dt_bias", "dt_bias"},
                                                            {"norm.weight", "norm.weight"},
                                                            {"out_proj.weight", "out_proj.weight"}};

class Qwen3_5 : public ExportFormat {
 public:
  std::string name() const override { return "qwen3_5_text"; }
  bool has_gguf() const override { return true; }
  const char* transformers() const override { return "5.2"; }

  std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const override {
    if (mixer.kind != "gated_delta_net")
      return fmt::format("its linear attention is gated delta net, not {}", mixer.kind);
    if (!model.query_key_norm)
      return fmt::format("its full attention normalises queries and keys, that of {} does not", model.model_type);
    if (model.attention_bias) return fmt::format("its projections have no bias, those of {} do", model.model_type);
    if (const std::string difference = beyond_llama(model); !difference.empty())
      return fmt::format("it has no {}, {} does", difference, model.model_type);
    if (model.experts.count > 0)
      return fmt::format("its feed-forward is dense, that of {} is a mixture of experts", model.model_type);
    return "";
  }

  Json config(const HybridSpec& hybrid, const Json& teacher) const override {
    const ModelSpec& model = hybrid.model;
    Json config = decoder_config("Qwen3_5ForCausalLM", "qwen3_5_text", model, teacher);
    config["rope_parameters"]["partial_rotary_factor"] = 1.0;  // a quarter is the default there
    config.update(Json{{"layer_types", layer_types(hybrid.full)},
                       {"linear_conv_kernel_dim", kTaps},
                       {"linear_key_head_dim", model.head_dim},
                       {"linear_value_head_dim", model.head_dim},
                       {"linear_num_key_heads", model.heads},
                       {"linear_num_value_heads", model.heads}});
    return config;
  }

  NamedTensors tensors(const HybridSpec& hybrid, const NamedTensors& own) const override {
    const std::map<std::string, at::Tensor> by_name(own.begin(), own.end());
    NamedTensors written;
    for (const auto& [name, tensor] : own) {
      if (is_shifted_norm(name)) {
        written.emplace_back(name, minus_one(tensor));
      } else if (name.ends_with("self_attn.q_proj.weight")) {
        written.emplace_back(name, with_gate_rows(tensor, hybrid.model.head_dim));
      } else if (name.ends_with("self_attn.o_proj.weight")) {
        written.emplace_back(name, tensor * 2);
      } else if (name.find(".linear_attn.") == std::string::npos) {
        written.emplace_back(name, tensor);
      }
    }
    for (int64_t layer = 0; layer < hybrid.model.layers; ++layer)
      if (!hybrid.full[static_cast<size_t>(layer)])
        add_linear_layer(written, by_name, layer_prefix(layer) + "linear_attn.");
    return written;
  }

  HybridSpec hybrid_of(const ConfigJson& config) const override {
    nlohmann::json teacher = config.values();
    teacher["model_type"] = "qwen3";
    teacher.erase("layer_types");
    HybridSpec hybrid{.model = ModelSpec::of(ConfigJson(teacher, config.file())), .mixer = {}, .full = {}};
    hybrid.mixer.kind = "gated_delta_net";
    hybrid.full = full_layers(config, hybrid.model.layers);
    const auto expect = [&](const char* key, int64_t expected) {
      if (config.size(key) != expected)
        config.fail(key, fmt::format("is {}, only {} is supported", config.size(key), expected));
    };
    expect("linear_conv_kernel_dim", kTaps);
    expect("linear_key_head_dim", hybrid.model.head_dim);
    expect("linear_value_head_dim", hybrid.model.head_dim);
    expect("linear_num_key_heads", hybrid.model.heads);
    expect("linear_num_value_heads", hybrid.model.heads);
    return hybrid;
  }

  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const override {
    std::map<std::string, MadeTensor> own;
    const auto add = [&](const std::string& name, const std::string& from, std::vector<int64_t> shape,
                         std::function<at::Tensor(at::Tensor)> undo) {
      own[name] = {std::move(shape), files.entry(from).dtype,
                   [files, from, undo = std::move(undo)] { return undo(files.read(from)); }};
    };
    const int64_t head_dim = hybrid.model.head_dim, width = hybrid.model.heads * head_dim;
    for (const std::string& name : files.names()) {
      const std::vector<int64_t> shape = files.shape(name);
      if (is_shifted_norm(name)) {
        add(name, name, shape, plus_one);
      } else if (name.ends_with("self_attn.q_proj.weight")) {
        if (shape != std::vector<int64_t>{2 * width, hybrid.model.hidden})
          throw BadInput(fmt::format("{}: tensor {}", files.path().string(), name),
                         "does not hold queries and gates of the heads");
        add(name, name, {width, hybrid.model.hidden},
            [head_dim, name](const at::Tensor& q) { return without_gate_rows(q, head_dim, name); });
      } else if (name.ends_with("self_attn.o_proj.weight")) {
        add(name, name, shape, [](const at::Tensor& o) { return o / 2; });
      } else if (name.find(".linear_attn.") == std::string::npos) {
        add(name, name, shape, [](const at::Tensor& same) { return same; });
      }
    }
    for (int64_t layer = 0; layer < hybrid.model.layers; ++layer) {
      if (hybrid.full[static_cast<size_t>(layer)]) continue;
      const std::string prefix = layer_prefix(layer) + "linear_attn.";
      for (int64_t part = 0; part < 3; ++part) {
        const auto rows = [part, width](const at::Tensor& all) { return all.narrow(0, part * width, width); };
        add(prefix + kProjections[part], prefix + "in_proj_qkv.weight", {width, hybrid.model.hidden}, rows);
        add(prefix + kConvolutions[part], prefix + "conv1d.weight", {width, kTaps},
            [rows](const at::Tensor& all) { return rows(all).squeeze(1); });
      }
      for (const auto& [ours, theirs] : kRenamed)
        add(prefix + ours, prefix + theirs, files.shape(prefix + theirs), [](const at::Tensor& same) { return same; });
    }
    return ModelFiles::of(files.path(), own);
  }

 private:
  static void add_linear_layer(NamedTensors& written, const std::map<std::string, at::Tensor>& own,
                               const std::string& prefix) {
    const auto joined = [&](const auto& names) {
      return at::cat({own.at(prefix + names[0]), own.at(prefix + names[1]), own.at(prefix + names[2])});
    };
    written.emplace_back(prefix + "in_proj_qkv.weight", joined(kProjections));
    written.emplace_back(prefix + "conv1d.weight", joined(kConvolutions).unsqueeze(1));
    for (const auto& [ours, theirs] : kRenamed) written.emplace_back(prefix + theirs, own.at(prefix + ours));
  }
};

}  // namespace

const ExportFormat& qwen3_5_format() {
  static const Qwen3_5 format;
  return format;
}

}  // namespace flashmorph
