#include "core/model/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using nlohmann::json;
using test::TemporaryFolder;
using testing::HasSubstr;

// "" when the config is accepted.
std::string complaint_about(const std::string& text) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "config.json") << text;
  try {
    ModelSpec::open(folder.path());
  } catch (const BadInput& error) {
    return error.what();
  }
  return "";
}

ModelSpec opened(const json& config) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "config.json") << config.dump();
  return ModelSpec::open(folder.path());
}

TEST(ModelSpec, ReadsTheTeacher) {
  const ModelSpec spec = ModelSpec::open("tests/data/passkey-teacher");
  EXPECT_EQ(spec.model_type, "qwen3");
  EXPECT_EQ(spec.vocabulary, 1024);
  EXPECT_EQ(spec.hidden, 128);
  EXPECT_EQ(spec.intermediate, 384);
  EXPECT_EQ(spec.layers, 12);
  EXPECT_EQ(spec.heads, 4);
  EXPECT_EQ(spec.kv_heads, 2);
  EXPECT_EQ(spec.head_dim, 32);
  EXPECT_EQ(spec.max_positions, 4096);
  EXPECT_EQ(spec.norm_epsilon, 1e-6);
  EXPECT_EQ(spec.rope.theta, 100000.0);
  EXPECT_TRUE(spec.query_key_norm);
  EXPECT_TRUE(spec.tied_embeddings);
  EXPECT_EQ(spec.query_groups(), 2);
}

TEST(ModelSpec, FillsInOptionalKeys) {
  json config = test::config_of({.heads = 64});
  for (const char* key :
       {"head_dim", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "hidden_act"})
    config.erase(key);
  const ModelSpec spec = opened(config);
  EXPECT_EQ(spec.head_dim, 128);  // transformers' default of this family
  EXPECT_EQ(spec.kv_heads, 32);
  EXPECT_FALSE(spec.tied_embeddings);
  EXPECT_EQ(spec.norm_epsilon, 1e-6);
  EXPECT_EQ(spec.rope.theta, 10000.0);
}

TEST(ModelSpec, PrefersTheThetaOfRopeParameters) {
  json config = test::config_of({});
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500.0}};
  EXPECT_EQ(opened(config).rope.theta, 500.0);
}

TEST(ModelSpec, FamiliesDifferInData) {
  const auto open = [](const char* family) { return ModelSpec::open(std::string("tests/golden/families/") + family); };
  EXPECT_FALSE(open("llama3").query_key_norm || open("llama3").attention_bias);
  EXPECT_TRUE(open("qwen2").attention_bias);
  EXPECT_EQ(open("qwen2").head_dim, 16) << "hidden size over heads";
  EXPECT_TRUE(open("qwen3").query_key_norm);
  const ModelSpec sparse = open("qwen3-moe");
  EXPECT_EQ(sparse.experts.count, 8);
  EXPECT_EQ(sparse.experts.per_token, 3);
  EXPECT_EQ(sparse.experts.intermediate, 16);
  EXPECT_TRUE(sparse.experts.normalized);
  EXPECT_TRUE(sparse.is_sparse(0) && !sparse.is_sparse(1) && sparse.is_sparse(2)) << "mlp_only_layers: [1]";
  const ModelSpec every_second = open("qwen3-moe-plain");
  EXPECT_FALSE(every_second.experts.normalized);
  EXPECT_TRUE(!every_second.is_sparse(0) && every_second.is_sparse(1)) << "decoder_sparse_step: 2";
}

TEST(ModelSpec, AWindowNoShorterThanThePositionsHidesNothing) {
  json config = test::config_of({.max_positions = 4096});
  config["model_type"] = "mistral";
  for (const json& window : {json(nullptr), json(4096), json(8192)}) {
    config["sliding_window"] = window;
    EXPECT_EQ(complaint_about(config.dump()), "");
  }
}

TEST(ModelSpec, AWindowCountsWhereItLimitsALayer) {
  json config = test::config_of({.layers = 3, .max_positions = 512});
  config.update({{"use_sliding_window", true}, {"sliding_window", 128}, {"max_window_layers", 3}});
  EXPECT_EQ(complaint_about(config.dump()), "") << "the layers from max_window_layers on: none";
  config["max_window_layers"] = 2;
  EXPECT_THAT(complaint_about(config.dump()), HasSubstr("limits layer 2"));
  config["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(complaint_about(config.dump()), "");
  config["layer_types"] = {"full_attention", "sliding_attention", "full_attention"};
  EXPECT_THAT(complaint_about(config.dump()), HasSubstr("limits layer 1"));
  config["sliding_window"] = 512;
  EXPECT_EQ(complaint_about(config.dump()), "") << "as long as the longest position";

  config = test::config_of({.max_positions = 8192});
  config["model_type"] = "mistral";
  EXPECT_THAT(complaint_about(config.dump()), HasSubstr("sliding_window: is missing, which means 4096"));
}

TEST(ModelSpec, KvHeadsThatAreNullAreAsManyAsHeads) {
  json config = test::config_of({.heads = 4});
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(opened(config).kv_heads, 4);
}

TEST(ModelSpec, OnlyKeysThatTransformersReadsInTheFamilyCount) {
  const auto with_biases = [](const char* family) {
    json config = test::config_of({});
    config.update({{"model_type", family}, {"attention_bias", true}, {"mlp_bias", true}, {"sliding_window", nullptr}});
    return opened(config);
  };
  const ModelSpec llama = with_biases("llama"), qwen2 = with_biases("qwen2"), qwen3 = with_biases("qwen3"),
                  mistral = with_biases("mistral");
  EXPECT_TRUE(llama.attention_bias && llama.output_bias && llama.mlp_bias);
  EXPECT_TRUE(qwen2.attention_bias && !qwen2.output_bias && !qwen2.mlp_bias);
  EXPECT_TRUE(qwen3.attention_bias && qwen3.output_bias && !qwen3.mlp_bias);
  EXPECT_FALSE(mistral.attention_bias || mistral.output_bias || mistral.mlp_bias);
}

TEST(ModelSpec, SmolLM3SkipsTheRotationOfEveryFourthLayer) {
  json config = test::config_of({.layers = 8});
  config["model_type"] = "smollm3";
  config.erase("rope_theta");
  config.erase("tie_word_embeddings");
  const ModelSpec spec = opened(config);
  for (int64_t layer = 0; layer < 8; ++layer) EXPECT_EQ(spec.rotates(layer), layer != 3 && layer != 7) << layer;
  EXPECT_EQ(spec.rope.theta, 2e6);
  EXPECT_TRUE(spec.tied_embeddings);
}

TEST(ModelSpec, HeadsThatAreNormedTogetherAreNotSplit) {
  const ModelSpec spec = ModelSpec::open("tests/golden/families/olmo2");
  EXPECT_NO_THROW(spec.check_tensor_parallel(1));
  try {
    spec.check_tensor_parallel(2);
    ADD_FAILURE() << "was accepted";
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), HasSubstr("olmo2 normalises queries and keys"));
  }
}

struct BadConfig {
  std::string key;
  json value;  // null: the key is removed
  std::string expected;
};

void expect_refused(const json& config, const std::string& key, const std::string& expected) {
  const std::string complaint = complaint_about(config.dump());
  EXPECT_THAT(complaint, HasSubstr("config.json: " + key));
  EXPECT_THAT(complaint, HasSubstr(expected));
}

class RefusedConfig : public testing::TestWithParam<BadConfig> {};

TEST_P(RefusedConfig, NamesFileKeyAndValue) {
  json config = test::config_of({});
  config[GetParam().key] = GetParam().value;
  expect_refused(config, GetParam().key, GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    ModelSpec, RefusedConfig,
    testing::Values(
        BadConfig{"model_type", "mamba",
                  "supported: granite, llama, mistral, mixtral, olmo2, phi3, qwen2, qwen3, qwen3_moe, smollm3"},
        BadConfig{"model_type", 3, "expected a string"}, BadConfig{"vocab_size", nullptr, "is missing"},
        BadConfig{"hidden_size", "32", "positive integer"}, BadConfig{"hidden_size", 32.5, "positive integer"},
        BadConfig{"num_hidden_layers", 0, "is 0"}, BadConfig{"intermediate_size", -4, "is -4"},
        BadConfig{"num_attention_heads", uint64_t{18446744073709551615u}, "positive integer"},
        BadConfig{"num_key_value_heads", 3, "does not divide"}, BadConfig{"head_dim", 7, "even number"},
        BadConfig{"rms_norm_eps", -1.0, "positive number"}, BadConfig{"rope_theta", "big", "positive number"},
        BadConfig{"hidden_act", "gelu", "only silu"}, BadConfig{"model_type", "gemma2", "caps attention's scores"},
        BadConfig{"quantization", {{"bits", 4}}, "not supported"},
        BadConfig{"quantization_config", {{"quant_method", "fp8"}}, "not supported"},
        BadConfig{"num_hidden_layers", 10001, "at most 10000"}, BadConfig{"rope_theta", 0.5, "greater than 1"},
        BadConfig{"partial_rotary_factor", 0.25, "not supported"}, BadConfig{"attention_bias", "no", "true or false"},
        BadConfig{"layer_types", {"full_attention", "linear_attention"}, "linear_attention"},
        BadConfig{"layer_types", {"full_attention"}, "lists 1 layers of 2"},
        BadConfig{"rope_scaling", "yarn", "expected an object"},
        BadConfig{"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}, "change with the sequence's length"},
        BadConfig{"rope_parameters", {{"rope_type", "longrope"}}, "change with the sequence's length"},
        BadConfig{"rope_scaling", {{"rope_type", "su"}}, "asks for 'su', supported: default, linear, llama3, yarn"},
        BadConfig{"layer_types", "full_attention", "a list of strings"},
        BadConfig{"tie_word_embeddings", 1, "true or false"}));

struct BadRope {
  json scaling;
  std::string key, expected;
};

class RefusedRope : public testing::TestWithParam<BadRope> {};

TEST_P(RefusedRope, NamesTheKeyInside) {
  json config = test::config_of({});
  config["rope_scaling"] = GetParam().scaling;
  expect_refused(config, "rope_scaling." + GetParam().key, GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    ModelSpec, RefusedRope,
    testing::Values(
        BadRope{{{"rope_type", "linear"}}, "factor", "is missing"},
        BadRope{{{"rope_type", "linear"}, {"factor", -2.0}}, "factor", "positive number"},
        BadRope{{{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}, "partial_rotary_factor", "not supported"},
        BadRope{{{"rope_type", "llama3"}, {"factor", 8.0}}, "low_freq_factor", "is missing"},
        BadRope{{{"sliding_attention", {{"rope_theta", 1e4}}}}, "full_attention", "is missing"},
        BadRope{{{"rope_type", "llama3"},
                 {"factor", 8.0},
                 {"original_max_position_embeddings", 8192},
                 {"low_freq_factor", 4.0},
                 {"high_freq_factor", 4.0}},
                "high_freq_factor",
                "greater than low_freq_factor"},
        BadRope{{{"rope_type", "yarn"}}, "factor", "is missing"},
        BadRope{{{"rope_type", "yarn"}, {"factor", 4.0}, {"mscale", 0.0}, {"mscale_all_dim", 1.0}},
                "mscale",
                "positive number"},
        BadRope{{{"rope_type", "yarn"}, {"factor", 4.0}, {"truncate", 1}}, "truncate", "true or false"},
        BadRope{{{"rope_type", 3}}, "rope_type", "expected a string"}));

struct BadFamily {
  const char* family;
  std::string key;
  json value;  // null: the key is removed
  std::string expected;
};

class RefusedFamily : public testing::TestWithParam<BadFamily> {};

TEST_P(RefusedFamily, NamesTheKey) {
  json config = json::parse(std::ifstream(std::string("tests/golden/families/") + GetParam().family + "/config.json"));
  config[GetParam().key] = GetParam().value;
  if (GetParam().value.is_null()) config.erase(GetParam().key);
  expect_refused(config, GetParam().key, GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    ModelSpec, RefusedFamily,
    testing::Values(BadFamily{"mistral", "sliding_window", 256, "is 256 here, shorter than max_position_embeddings"},
                    BadFamily{"phi3", "sliding_window", 256, "limits layer 0"},
                    BadFamily{"mistral", "layer_types", {"sliding_attention", "full_attention"}, "sliding_attention"},
                    BadFamily{"phi3", "rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}, "asks for longrope"},
                    BadFamily{"smollm3", "no_rope_layers", {1, 0}, "lists 2 layers of 3"},
                    BadFamily{"granite", "residual_multiplier", 0, "positive number"},
                    BadFamily{"mixtral", "num_experts_per_tok", 5, "more than the 4 experts"},
                    BadFamily{"qwen3-moe", "moe_intermediate_size", nullptr, "is missing"},
                    BadFamily{"qwen3-moe", "num_experts_per_tok", 9, "more than the 8 experts"},
                    BadFamily{"qwen3-moe", "num_experts", 0, "positive integer"},
                    BadFamily{"qwen3-moe", "mlp_only_layers", {3}, "names layer 3 of 3"},
                    BadFamily{"qwen3-moe", "mlp_only_layers", {-1}, "list of indices"},
                    BadFamily{"qwen3-moe", "norm_topk_prob", 1, "true or false"},
                    BadFamily{"qwen3-moe", "decoder_sparse_step", 0, "positive integer"}));

TEST(ModelSpec, RefusesFilesThatAreNotAConfig) {
  EXPECT_THAT(complaint_about("{\"model_type\": "), HasSubstr("not valid JSON"));
  EXPECT_THAT(complaint_about("[1, 2]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(complaint_about(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(complaint_about(R"({"model_type": "llama", "model_type": "qwen3"})"), HasSubstr("twice"));
  const TemporaryFolder empty;
  EXPECT_THROW(ModelSpec::open(empty.path()), BadInput);
}

TEST(ModelSpec, RefusesAHeadSizeThatNobodyKnows) {
  json config = json::parse(std::ifstream("tests/golden/families/qwen2/config.json"));
  config["hidden_size"] = 66;
  expect_refused(config, "head_dim", "not a multiple of num_attention_heads");
}

TEST(ModelSpec, ListsTheTensorSizesThatDivide) {
  const ModelSpec spec = opened(test::config_of({.heads = 8, .kv_heads = 2, .head_dim = 8, .intermediate = 48}));
  for (const int64_t good : {1, 2, 4, 8}) EXPECT_NO_THROW(spec.check_tensor_parallel(good));
  for (const int64_t bad : {-1, 0, 3, 16}) {
    try {
      spec.check_tensor_parallel(bad);
      ADD_FAILURE() << bad << " was accepted";
    } catch (const BadInput& error) {
      EXPECT_THAT(error.what(), HasSubstr("these would: 1, 2, 4, 8"));
    }
  }
}

}  // namespace
}  // namespace flashmorph
