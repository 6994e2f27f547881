// What transformers expects of a qwen3_5_text folder; tests/end_to_end/exports.py runs it there.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/bad_input.h"
#include "core/export/describe.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/export/small_hybrid.h"

namespace flashmorph {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

MixerSection gated_delta_net() {
  MixerSection mixer;
  mixer.kind = "gated_delta_net";
  return mixer;
}

struct Qwen3_5 : testing::Test {
  explicit Qwen3_5(const test::SmallModel& sizes = {})
      : content(test::small_hybrid(source.path(), gated_delta_net(), sizes)),
        own(ModelFiles::of("hybrid", content.tensors)) {}

  ExportReport write() {
    return export_hugging_face(folder(), export_format("auto", content.hybrid.model, content.hybrid.mixer), content);
  }
  std::filesystem::path folder() const { return target.path() / "export"; }
  nlohmann::json config() const { return nlohmann::json::parse(std::ifstream(folder() / "config.json")); }
  at::Tensor written(const std::string& name) const { return ModelFiles::open(folder()).read(name); }

  TemporaryFolder source, target;
  ExportContent content;
  ModelFiles own;
};

TEST_F(Qwen3_5, NeedsNoRemoteCode) {
  const ExportReport report = write();
  EXPECT_EQ(report.format, "qwen3_5_text");
  EXPECT_LT(report.largest_difference, 2e-5);
  EXPECT_FALSE(std::filesystem::exists(folder() / "modeling_flashmorph.py"));
  EXPECT_FALSE(config().contains("auto_map"));
}

TEST_F(Qwen3_5, ConfigNamesEverySizeAndTheWholeRotation) {
  write();
  const nlohmann::json expected = nlohmann::json::parse(R"({
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "hidden_act": "silu", "rms_norm_eps": 1e-06, "attention_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": true,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4,
    "linear_num_value_heads": 4, "dtype": "float32"})");
  EXPECT_EQ(config(), expected);
}

TEST_F(Qwen3_5, AttentionGetsZeroGatesAndADoubledOutput) {
  write();
  const std::string attention = "model.layers.1.self_attn.";
  const at::Tensor q = written(attention + "q_proj.weight").unflatten(0, {4, 16});  // a head: 8 query rows, 8 gate rows
  EXPECT_TRUE(at::equal(q.narrow(1, 0, 8).flatten(0, 1), own.read(attention + "q_proj.weight")));
  EXPECT_TRUE(q.narrow(1, 8, 8).eq(0).all().item<bool>());
  EXPECT_TRUE(at::equal(written(attention + "o_proj.weight"), 2 * own.read(attention + "o_proj.weight")));
  EXPECT_TRUE(at::equal(written(attention + "k_proj.weight"), own.read(attention + "k_proj.weight")));
}

TEST_F(Qwen3_5, NormsAreStoredMinusOneButNotTheMixers) {
  write();
  for (const std::string name :
       {"model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight",
        "model.layers.1.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight"})
    EXPECT_TRUE(at::allclose(written(name) + 1.0, own.read(name), 0.0, 1e-7)) << name;
  EXPECT_TRUE(
      at::equal(written("model.layers.0.linear_attn.norm.weight"), own.read("model.layers.0.linear_attn.norm.weight")));
}

TEST_F(Qwen3_5, LinearLayersAreJoinedInTheOrderQueriesKeysValues) {
  write();
  const std::string branch = "model.layers.2.linear_attn.";
  EXPECT_TRUE(at::equal(written(branch + "in_proj_qkv.weight"),
                        at::cat({own.read(branch + "q_proj.weight"), own.read(branch + "k_proj.weight"),
                                 own.read(branch + "v_proj.weight")})));
  EXPECT_TRUE(at::equal(written(branch + "conv1d.weight").squeeze(1),
                        at::cat({own.read(branch + "q_conv.weight"), own.read(branch + "k_conv.weight"),
                                 own.read(branch + "v_conv.weight")})));
  EXPECT_EQ(written(branch + "conv1d.weight").sizes(), (std::vector<int64_t>{3 * 32, 1, 4}));
  for (const char* name : {"A_log", "dt_bias", "out_proj.weight"})
    EXPECT_TRUE(at::equal(written(branch + name), own.read(branch + name))) << name;
}

TEST_F(Qwen3_5, IsDescribedAsTheHybridItHolds) {
  write();
  const ModelDescription model = describe(folder());
  EXPECT_EQ(model.format, "qwen3_5_text");
  EXPECT_EQ(model.hybrid.full, content.hybrid.full);
  EXPECT_EQ(model.hybrid.mixer.kind, "gated_delta_net");
  EXPECT_EQ(model.state_bytes, 2 * (4 * 8 * 8 * 4 + 3 * 3 * 32 * 4));  // states, and three tokens of q, k and v
}

TEST_F(Qwen3_5, OthersOfTheFormatAreRefused) {
  write();
  const auto complaint = [&](const char* key, const nlohmann::json& value) -> std::string {
    nlohmann::json changed = config();
    changed[key] = value;
    std::ofstream(folder() / "config.json") << changed.dump();
    try {
      describe(folder());
    } catch (const BadInput& refused) {
      return refused.what();
    }
    return "";
  };
  EXPECT_THAT(complaint("linear_conv_kernel_dim", 3), HasSubstr("linear_conv_kernel_dim"));
  EXPECT_THAT(complaint("linear_num_value_heads", 8), HasSubstr("linear_"));
}

struct Qwen3_5InHalf : Qwen3_5 {
  Qwen3_5InHalf() : Qwen3_5({.dtype = at::kBFloat16}) {}
};

// Below 1/2 bfloat16 has values that w - 1 cannot give back; those norms are stored in float32.
TEST_F(Qwen3_5InHalf, NormsSurviveExactly) {
  at::Tensor fine = at::full({32}, 1.0, at::kBFloat16);
  fine[3] = 0.0121;
  for (auto& [name, tensor] : content.tensors)
    if (name == "model.layers.0.input_layernorm.weight") tensor = fine;
  const ExportReport report = write();
  EXPECT_EQ(written("model.layers.0.input_layernorm.weight").scalar_type(), at::kFloat);
  EXPECT_EQ(written("model.layers.2.input_layernorm.weight").scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal((written("model.layers.0.input_layernorm.weight") + 1.0).to(at::kBFloat16), fine));
  EXPECT_EQ(report.largest_difference, 0.0);
}

}  // namespace
}  // namespace flashmorph
