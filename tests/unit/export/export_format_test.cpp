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
  EXPECT_EQ(export_format("flashmorph", family("qwen3"), mixer("gated_delta_net")).name(), "flashmorph");
}

TEST(ExportFormat, ImpossiblePairsHaveAReason) {
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3"), "lightning"), HasSubstr("gated delta net, not lightning"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3"), "gla"), HasSubstr("gated delta net, not gla"));
  EXPECT_THAT(refusal("qwen3_5_text", family("llama3"), "gated_delta_net"), HasSubstr("that of llama does not"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen2"), "gated_delta_net"), HasSubstr("that of qwen2 does not"));
  EXPECT_THAT(refusal("qwen3_5_text", family("qwen3-moe"), "gated_delta_net"), HasSubstr("mixture of experts"));
  ModelSpec scaled = family("qwen3");
  scaled.residual_multiplier = 0.22;
  EXPECT_THAT(refusal("qwen3_5_text", scaled, "gated_delta_net"), HasSubstr("has no multipliers"));
  EXPECT_THAT(refusal("auto", family("qwen3"), "of_my_own"), HasSubstr("mixer of_my_own has no Python form"));
  EXPECT_THAT(refusal("onnx", family("qwen3"), "lightning"), HasSubstr("'onnx' is no export format"));
}

}  // namespace
}  // namespace flashmorph
