#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/base/bad_input.h"
#include "core/export/export_format.h"
#include "core/mixer/window.h"
#include "core/model/weights.h"

// The decoders of transformers that have sliding windows in any of their layers: Qwen2, Qwen3, for all that look like
// Llama Ministral, and Granite's, whose layers all have sinks. A window's branch has the names of full attention there.

namespace flashmorph {
namespace {

using Json = nlohmann::ordered_json;

constexpr LayerNames kNames{"full_attention", "sliding_attention"};

// What the three differ by.
struct Home {
  const char *model_type, *architecture;
  const char* family;  // of ours, with the same decoder but without windows
  bool bias;           // of queries, keys and values
  bool norm;           // of each head's queries and keys
};

class SlidingWindow : public ExportFormat {
 public:
  explicit SlidingWindow(const Home& home) : home_(home) {}
  std::string name() const override { return home_.model_type; }

  std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const override {
    const auto differs = [&](bool here, bool there, const char* what) {
      return here == there ? ""
                           : fmt::format("it has {} {}, {} {}", here ? "a" : "no", what, model.model_type,
                                         there ? "has one" : "has none");
    };
    if (mixer.kind != "window") return fmt::format("its other attention is window, not {}", mixer.kind);
    if (!mixer.rope) return kRotates;
    if (mixer.own.of<WindowSettings>().sinks) return "its windows have no sinks, mixer.sinks is true";
    if (const std::string bias = differs(home_.bias, model.attention_bias, "bias of queries, keys and values");
        !bias.empty())
      return bias;
    if (const std::string norm = differs(home_.norm, model.query_key_norm, "norm of queries and keys"); !norm.empty())
      return norm;
    if (const std::string difference = beyond_llama(model); !difference.empty())
      return fmt::format("it has no {}, {} does", difference, model.model_type);
    return model.experts.count == 0
               ? ""
               : fmt::format("its feed-forward is dense, that of {} is a mixture of experts", model.model_type);
  }

  Json config(const HybridSpec& hybrid, const Json& teacher) const override {
    Json config = decoder_config(home_.architecture, home_.model_type, hybrid.model, teacher);
    if (!home_.norm) config.erase("attention_bias");  // as the class has it, or has not
    config["layer_types"] = layer_types(hybrid.full, kNames);
    config["sliding_window"] = hybrid.mixer.own.of<WindowSettings>().window;
    if (is_qwen()) {
      config["use_sliding_window"] = true;
      config["max_window_layers"] = 0;
    }
    return config;
  }

  NamedTensors tensors(const HybridSpec&, const NamedTensors& own) const override {
    NamedTensors written;
    for (const auto& [name, tensor] : own) written.emplace_back(renamed(name, kOurs, kTheirs), tensor);
    return written;
  }

  bool reads(const ConfigJson& config) const override {
    if (!ExportFormat::reads(config)) return false;
    const std::vector<std::string> types = config.texts("layer_types");
    return std::ranges::count(types, kNames.linear) > 0;
  }

  HybridSpec hybrid_of(const ConfigJson& config) const override {
    nlohmann::json teacher = config.values();
    teacher["model_type"] = home_.family;
    for (const char* key : {"layer_types", "use_sliding_window", "max_window_layers"}) teacher.erase(key);
    teacher["sliding_window"] = nullptr;  // Mistral's default is a window in all layers
    HybridSpec hybrid{.model = ModelSpec::of(ConfigJson(teacher, config.file())), .mixer = {}, .full = {}};
    hybrid.mixer.kind = "window";
    hybrid.mixer.own.of<WindowSettings>().window = config.size("sliding_window");
    hybrid.full = full_layers(config, hybrid.model.layers, kNames);
    return hybrid;
  }

  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const override {
    std::map<std::string, TensorPart> own;
    for (const std::string& name : files.names()) {
      std::string ours = name;
      for (int64_t layer = 0; layer < hybrid.model.layers; ++layer)
        if (!hybrid.full[static_cast<size_t>(layer)] && name.starts_with(layer_prefix(layer)))
          ours = renamed(name, kTheirs, kOurs);
      own[ours] = {name, files.shape(name)};
    }
    return files.under(own);
  }

 protected:
  static constexpr const char* kRotates = "its windows rotate queries and keys, mixer.rope is false";

 private:
  static constexpr const char *kOurs = ".linear_attn.", *kTheirs = ".self_attn.";

  static std::string renamed(std::string name, const std::string& from, const std::string& to) {
    const size_t place = name.find(from);
    return place == std::string::npos ? name : name.replace(place, from.size(), to);
  }

  bool is_qwen() const { return home_.bias || home_.norm; }

  Home home_;
};

// Granite's: a sink a head in every layer, where full attention and windows without have one that weighs nothing; a
// rotation a layer; a bias of the output wherever queries, keys and values have one.
class GraniteWindow : public SlidingWindow {
 public:
  GraniteWindow() : SlidingWindow({"granite_swa", "GraniteSWAForCausalLM", "granite", false, false}) {}
  const char* transformers() const override { return "5.15"; }

  std::string obstacle(const ModelSpec& model, const MixerSection& mixer) const override {
    if (mixer.kind != "window") return fmt::format("its other attention is window, not {}", mixer.kind);
    if (!mixer.rope) return kRotates;
    const std::string difference = beyond_granite(model);
    return difference.empty() ? "" : fmt::format("it has no {}, {} does", difference, model.model_type);
  }

  Json config(const HybridSpec& hybrid, const Json& teacher) const override {
    const ModelSpec& model = hybrid.model;
    Json config = SlidingWindow::config(hybrid, teacher);
    config.update(granite_multipliers(model));
    config["attention_bias"] = model.attention_bias;
    config["mlp_bias"] = model.mlp_bias;
    for (int64_t layer = 0; layer < model.layers; ++layer)
      config[kThetas].push_back(model.rotates(layer) ? model.rope.theta : 0.0);
    return config;
  }

  NamedTensors tensors(const HybridSpec& hybrid, const NamedTensors& own) const override {
    const ModelSpec& model = hybrid.model;
    NamedTensors written = SlidingWindow::tensors(hybrid, own);
    const bool sinks = hybrid.mixer.own.of<WindowSettings>().sinks;
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      if (hybrid.full[static_cast<size_t>(layer)] || !sinks)
        written.emplace_back(sinks_of(layer), at::full({model.heads}, kWeighsNothing,
                                                       own.front().second.options().requires_grad(false)));
      if (lacks_output_bias(model)) written.push_back(no_output_bias(model, layer, own));
    }
    return written;
  }

  // As a Granite with windows that have sinks, whatever they weigh.
  HybridSpec hybrid_of(const ConfigJson& config) const override {
    HybridSpec hybrid = SlidingWindow::hybrid_of(config);
    hybrid.mixer.own.of<WindowSettings>().sinks = true;
    ModelSpec& model = hybrid.model;
    const nlohmann::json thetas = config.has(kThetas) ? config.values()[kThetas] : nlohmann::json::array();
    std::vector<bool> still;
    for (const nlohmann::json& theta : thetas) {
      if (theta != 0 && theta != model.rope.theta)
        config.fail(kThetas,
                    fmt::format("holds {}, only 0 and rope_theta's {} are supported", theta.dump(), model.rope.theta));
      still.push_back(theta == 0);
    }
    if (!still.empty() && static_cast<int64_t>(still.size()) != model.layers)
      config.fail(kThetas, fmt::format("lists {} layers of {}", still.size(), model.layers));
    if (std::ranges::count(still, true) > 0) model.no_rope = still;
    return hybrid;
  }

  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec& hybrid) const override {
    for (int64_t layer = 0; layer < hybrid.model.layers; ++layer)
      if (hybrid.full[static_cast<size_t>(layer)] &&
          files.read(sinks_of(layer), {hybrid.model.heads}, at::kFloat).max().item<double>() > kWeighsNothing)
        throw BadInput(files.path().string(),
                       fmt::format("{} weighs something: full attention here has no sinks", sinks_of(layer)));
    return SlidingWindow::own_tensors(files, hybrid);
  }

 private:
  static constexpr const char* kThetas = "layer_rope_theta";
  static constexpr double kWeighsNothing = -8192.0;  // beside any logit; bfloat16 holds it

  static std::string sinks_of(int64_t layer) { return layer_prefix(layer) + "self_attn.sinks"; }
};

}  // namespace

std::vector<const ExportFormat*> sliding_window_formats() {
  static const SlidingWindow qwen2({"qwen2", "Qwen2ForCausalLM", "qwen2", true, false});
  static const SlidingWindow qwen3({"qwen3", "Qwen3ForCausalLM", "qwen3", false, true});
  static const SlidingWindow ministral({"ministral", "MinistralForCausalLM", "mistral", false, false});
  static const GraniteWindow granite;
  return {&qwen2, &qwen3, &ministral, &granite};
}

}  // namespace flashmorph
