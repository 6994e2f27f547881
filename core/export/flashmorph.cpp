#include <ATen/ATen.h>
#include <fmt/format.h>

#include <type_traits>

#include "core/base/bad_input.h"
#include "core/export/export_format.h"
#include "core/export/modeling_code.h"
#include "core/mixer/linear_branch.h"

// The format of our own: the teacher's config.json and tensors with those of the branches beside them, and
// modeling_flashmorph.py with the mixer's Python at its end, which transformers runs with trust_remote_code.

namespace flashmorph {
namespace {

using Json = nlohmann::ordered_json;

// Kept in `flashmorph.rotary.teacher`: at the top level transformers would check them against keys that it does not
// know here.
constexpr const char* kRopeKeys[] = {"rope_theta", "rope_scaling", "rope_parameters"};

// A mixer's own settings as they are written, and back.
class SettingsToJson : public KeyVisitor {
 public:
  explicit SettingsToJson(Json& json) : json_(json) {}

 protected:
  void visit(const std::string& name, Value value, const Rule&) override {
    std::visit([&](const auto* field) { write(json_[name], *field); }, value);
  }

 private:
  template <class Field>
  static void write(Json& json, const Field& field) {
    if constexpr (std::is_same_v<Field, Range>)
      json = {field.min, field.max};
    else
      json = field;
  }

  Json& json_;
};

class SettingsFromJson : public KeyVisitor {
 public:
  explicit SettingsFromJson(const ConfigJson& json) : json_(json) {}
  bool reads() const override { return true; }

 protected:
  void visit(const std::string& name, Value value, const Rule& rule) override {
    if (!json_.has(name)) return;  // an export of a time when there was no such setting
    try {
      std::visit([&](auto* field) { read(json_.values()[name], *field); }, value);
    } catch (const nlohmann::json::exception&) {
      json_.fail(name, fmt::format("is {}, expected {}", json_.values()[name].dump(), rule.meaning));
    }
  }

 private:
  template <class Field>
  static void read(const nlohmann::json& json, Field& field) {
    if constexpr (std::is_same_v<Field, Range>)
      field = {json.at(0).get<int64_t>(), json.at(1).get<int64_t>()};
    else
      field = json.get<Field>();
  }

  const ConfigJson& json_;
};

Json settings_of(const HybridSpec& hybrid) {
  const ModelSpec& model = hybrid.model;
  Json settings = {{"teacher", model.model_type},
                   {"query_key_norm", model.query_key_norm},
                   {"norm_over_heads", model.norm_over_heads},
                   {"norm_after", model.norm_after},
                   {"attention_bias", model.attention_bias},
                   {"output_bias", model.output_bias},
                   {"mlp_bias", model.mlp_bias},
                   {"embedding_multiplier", model.embedding_multiplier},
                   {"residual_multiplier", model.residual_multiplier},
                   {"attention_scale", model.attention_scale()},
                   {"logit_divisor", model.logit_divisor},
                   {"no_rope", model.no_rope},
                   {"rotary", {{"frequencies", model.rope.frequencies(model.head_dim)}, {"scale", model.rope.scale}}},
                   {"mixer", hybrid.mixer.kind},
                   {"rope", hybrid.mixer.rope},
                   {"chunk", hybrid.mixer.chunk}};
  SettingsToJson own(settings);
  KindSettings(hybrid.mixer.own).keys_of(hybrid.mixer.kind, own);
  if (const MixerKind& kind = mixer_kind(hybrid.mixer); kind.facts != nullptr)
    settings.update(kind.facts(hybrid.mixer, model));
  if (model.experts.count > 0)
    settings["experts"] = {{"count", model.experts.count},
                           {"per_token", model.experts.per_token},
                           {"intermediate", model.experts.intermediate},
                           {"normalized", model.experts.normalized},
                           {"in_layer", model.experts.in_layer}};
  return settings;
}

class Flashmorph : public ExportFormat {
 public:
  std::string name() const override { return "flashmorph"; }

  std::string obstacle(const ModelSpec&, const MixerSection& mixer) const override {
    return mixer_kind(mixer).python != nullptr ? "" : fmt::format("mixer {} has no Python form", mixer.kind);
  }

  bool brings_code() const override { return true; }

  Json config(const HybridSpec& hybrid, const Json& teacher) const override {
    Json config = teacher;
    config["model_type"] = "flashmorph";
    config["architectures"] = {"FlashmorphForCausalLM"};
    config["auto_map"] = {{"AutoConfig", "modeling_flashmorph.FlashmorphConfig"},
                          {"AutoModelForCausalLM", "modeling_flashmorph.FlashmorphForCausalLM"}};
    // These may be left to a family's defaults, or be other than what the teacher's file says.
    config["head_dim"] = hybrid.model.head_dim;
    config["num_key_value_heads"] = hybrid.model.kv_heads;
    config["rms_norm_eps"] = hybrid.model.norm_epsilon;
    config["tie_word_embeddings"] = hybrid.model.tied_embeddings;
    config["layer_types"] = layer_types(hybrid.full);
    config["flashmorph"] = settings_of(hybrid);
    Json& rope = config["flashmorph"]["rotary"]["teacher"] = Json::object();
    for (const char* key : kRopeKeys) {
      if (!config.contains(key)) continue;
      rope[key] = config[key];
      config.erase(key);
    }
    return config;
  }

  NamedTensors tensors(const HybridSpec&, const NamedTensors& own) const override { return own; }

  std::map<std::string, std::string> more_files(const MixerSection& mixer) const override {
    return {{"modeling_flashmorph.py", fmt::format("{}\n\n{}", modeling_code(), mixer_kind(mixer).python())}};
  }

  HybridSpec hybrid_of(const ConfigJson& config) const override {
    const ConfigJson settings = config.inside("flashmorph");
    nlohmann::json teacher = config.values();
    teacher["model_type"] = settings.text("teacher", "");
    teacher.erase("layer_types");
    teacher.update(settings.inside("rotary").inside("teacher").values());
    HybridSpec hybrid{.model = ModelSpec::of(ConfigJson(teacher, config.file())), .mixer = {}, .full = {}};
    hybrid.mixer.kind = settings.text("mixer", "");
    SettingsFromJson own(settings);
    hybrid.mixer.own.keys_of(hybrid.mixer.kind, own);
    hybrid.mixer.rope = settings.flag("rope", hybrid.mixer.rope);
    hybrid.mixer.chunk = settings.size("chunk", hybrid.mixer.chunk);
    hybrid.full = full_layers(config, hybrid.model.layers);
    return hybrid;
  }

  ModelFiles own_tensors(const ModelFiles& files, const HybridSpec&) const override { return files; }
};

}  // namespace

const ExportFormat& flashmorph_format() {
  static const Flashmorph format;
  return format;
}

}  // namespace flashmorph
