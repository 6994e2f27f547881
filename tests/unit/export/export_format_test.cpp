#include "core/export/export_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/mixer/linear_branch.h"

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

std::string refusal(const std::string& format, const ModelSpec& model, const std::string& kind) {
  try {
    export_format(format, model, mixer(kind));
  } catch (const BadInput& refused) {
    EXPECT_EQ(refused.faults().front().where, "stages.export.format");
    return refused.faults().front().what;
  }
  return "";
}

TEST(ExportFormat, AutoTakesTheOneThatNeedsNoRemoteCode) {
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("gated_delta_net")).name(), "qwen3_5_text");
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("lightning")).name(), "flashmorph");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("gated_delta_net")).name(), "flashmorph");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("mamba2")).name(), "granitemoehybrid");
  EXPECT_EQ(export_format("auto", family("llama3"), mixer("window")).name(), "ministral");
  EXPECT_EQ(export_format("auto", family("qwen2"), mixer("window")).name(), "qwen2");
  EXPECT_EQ(export_format("auto", family("qwen3"), mixer("window")).name(), "qwen3");
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
  ModelSpec wide = family("llama3");
  wide.hidden = wide.heads * wide.head_dim + 1;
  EXPECT_THAT(refusal("granitemoehybrid", wide, "mamba2"), HasSubstr("a multiple of the"));
  ModelSpec scaled = family("qwen3");
  scaled.residual_multiplier = 0.22;
  EXPECT_THAT(refusal("qwen3_5_text", scaled, "gated_delta_net"), HasSubstr("has no multipliers"));
  EXPECT_THAT(refusal("auto", family("qwen3"), "of_my_own"), HasSubstr("mixer of_my_own has no Python form"));
  EXPECT_THAT(
      refusal("onnx", family("qwen3"), "lightning"),
      HasSubstr(
          "is 'onnx', expected one of: auto, qwen3_5_text, granitemoehybrid, qwen2, qwen3, ministral, flashmorph"));
}

}  // namespace
}  // namespace flashmorph
