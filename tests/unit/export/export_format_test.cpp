#include "core/export/export_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/mixer/linear_branch.h"
#include "core/mixer/window.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

[[maybe_unused]] const bool without_python = add_mixer_kind("of_my_own", {.make = nullptr});

ModelSpec family(const std::string& name) { return ModelSpec::open("tests/golden/families/" + name); }

MixerSection mixer(const std::string& kind) {
  MixerSection mixer;
  mixer.kind = kind;
  return mixer;
}

MixerSection window_with_sinks() {
  MixerSection window = mixer("window");
  window.own.of<WindowSettings>().sinks = true;
  return window;
}

std::string refusal(const std::string& format, const ModelSpec& model, const MixerSection& mixer) {
  try {
    export_format(format, model, mixer);
  } catch (const BadInput& refused) {
    EXPECT_EQ(refused.faults().front().where, "stages.export.format");
    return refused.faults().front().what;
  }
  return "";
}

std::string refusal(const std::string& format, const ModelSpec& model, const std::string& kind) {
  return refusal(format, model, mixer(kind));
}

TEST(ExportFormat, AutoTakesTheOneThatNeedsNoRemoteCode) {
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("gated_delta_net")).name(), "qwen3_5_text");
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("lightning")).name(), "flashmorph");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("gated_delta_net")).name(), "flashmorph");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("mamba2")).name(), "granitemoehybrid");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("window")).name(), "ministral");
  EXPECT_EQ(export_format("auto", family("qwen2"), mixer("window")).name(), "qwen2");
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("window")).name(), "qwen3");
  EXPECT_EQ(export_format("auto", family("granite"), mixer("window")).name(), "granite_swa");
  EXPECT_EQ(export_format("auto", family("llama3"), window_with_sinks()).name(), "granite_swa");
  EXPECT_EQ(export_format("auto", family("qwen3"), window_with_sinks()).name(), "flashmorph");
  EXPECT_EQ(export_format("flashmorph", family("qwen3"), mixer("gated_delta_net")).name(), "flashmorph");
}

TEST(ExportFormat, ImpossiblePairsHaveAReason) {
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3"), "lightning"), HasSubstr("gated delta net, not lightning"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3"), "gla"), HasSubstr("gated delta net, not gla"));
  EXPECT_THAT(refusal("qwen3_5_text", family("llama3"), "gated_delta_net"), HasSubstr("that of llama does not"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen2"), "gated_delta_net"), HasSubstr("that of qwen2 does not"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3-moe"), "gated_delta_net"), HasSubstr("mixture of experts"));
  EXPECT_THAT(refusal("granitemoehybrid", family("llama3"), "lightning"), HasSubstr("is mamba2, not lightning"));
  EXPECT_THAT(refusal("granitemoehybrid", family("qwen3"), "mamba2"), HasSubstr("norm of queries and keys"));
  EXPECT_THAT(refusal("granitemoehybrid", family("mixtral"), "mamba2"), HasSubstr("experts"));
  EXPECT_THAT(refusal("granitemoehybrid", family("smollm3"), "mamba2"), HasSubstr("without rotation"));
  EXPECT_THAT(refusal("ministral", family("llama3"), "mamba2"), HasSubstr("is window, not mamba2"));
  EXPECT_THAT(refusal("ministral", family("qwen3"), "window"), HasSubstr("no norm of queries and keys, qwen3 has one"));
  EXPECT_THAT(refusal("qwen3", family("qwen2"), "window"), HasSubstr("no bias of queries, keys and values"));
  EXPECT_THAT(refusal("qwen2", family("llama3"), "window"), HasSubstr("a bias of queries, keys and values, llama has"));
  EXPECT_THAT(refusal("ministral", family("granite"), "window"), HasSubstr("multipliers"));
  EXPECT_THAT(refusal("ministral", family("llama3"), window_with_sinks()), HasSubstr("windows have no sinks"));
  EXPECT_THAT(refusal("granite_swa", family("qwen3"), window_with_sinks()), HasSubstr("norm of queries and keys"));
  EXPECT_THAT(refusal("granite_swa", family("llama3"), "lightning"), HasSubstr("is window, not lightning"));
  ModelSpec wide = family("llama3");
  wide.hidden = wide.heads * wide.head_dim + 1;
  EXPECT_THAT(refusal("granitemoehybrid", wide, "mamba2"), HasSubstr("a multiple of the"));
  ModelSpec scaled = family("qwen3");
  scaled.residual_multiplier = 0.22;
  EXPECT_THAT(refusal("qwen3_5_text", scaled, "gated_delta_net"), HasSubstr("has no multipliers"));
  EXPECT_THAT(refusal("auto", family("qwen3"), "of_my_own"), HasSubstr("mixer of_my_own has no Python form"));
  EXPECT_THAT(refusal("onnx", family("qwen3"), "lightning"),
              HasSubstr("is 'onnx', expected one of: auto, qwen3_5_text, granitemoehybrid, qwen2, qwen3, ministral, "
                        "granite_swa, flashmorph"));
  EXPECT_THAT(refusal("minicpm_sala", family("llama3"), "lightning"), HasSubstr("of fewer than 128 channels"));
  EXPECT_THAT(refusal("gguf", family("qwen3"), "gated_delta_net"), HasSubstr("deploy/hf_to_gguf.py makes"));
}

struct GraniteWindow : testing::Test {
  GraniteWindow() {
    hybrid.full.assign(static_cast<size_t>(hybrid.model.layers), false);
    hybrid.full[0] = true;
    written = format.tensors(hybrid, {{"model.layers.1.linear_attn.sinks", sinks}});
    config = format.config(hybrid, nlohmann::ordered_json::object());
  }

  HybridSpec read() const { return format.hybrid_of({config, "config.json"}); }

  HybridSpec hybrid{.model = family("smollm3"), .mixer = window_with_sinks(), .full = {}};
  const ExportFormat& format = export_format("granite_swa", hybrid.model, hybrid.mixer);
  at::Tensor sinks = at::randn({hybrid.model.heads}, at::kBFloat16);
  NamedTensors written;
  nlohmann::json config;
};

TEST_F(GraniteWindow, FullAttentionHasSinksThatWeighNothing) {
  const ModelFiles own = format.own_tensors(ModelFiles::of("", written), hybrid);
  EXPECT_TRUE(own.read("model.layers.1.linear_attn.sinks").equal(sinks));
  for (auto& [name, value] : written)
    if (name == "model.layers.0.self_attn.sinks") value.zero_();
  try {
    format.own_tensors(ModelFiles::of("", written), hybrid);
    FAIL() << "a sink in full attention was taken";
  } catch (const BadInput& refused) {
    EXPECT_THAT(refused.what(), HasSubstr("model.layers.0.self_attn.sinks weighs something"));
  }
}

TEST_F(GraniteWindow, EachLayerSaysWhetherItRotates) {
  ASSERT_FALSE(hybrid.model.no_rope.empty());
  EXPECT_EQ(read().model.no_rope, hybrid.model.no_rope);
  EXPECT_TRUE(read().mixer.own.of<WindowSettings>().sinks);
  config["layer_rope_theta"][1] = 123.0;
  EXPECT_THROW(read(), BadInput);
  config["layer_rope_theta"] = {0.0};
  EXPECT_THROW(read(), BadInput);
}

}  // namespace
}  // namespace flashmorph
