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
  EXPECT_EQ(spec.rope_theta, 100000.0);
  EXPECT_TRUE(spec.query_key_norm);
  EXPECT_TRUE(spec.tied_embeddings);
  EXPECT_EQ(spec.query_groups(), 2);
}

TEST(ModelSpec, FillsInOptionalKeys) {
  json config = test::config_of({});
  for (const char* key : {"head_dim", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "hidden_act"})
    config.erase(key);
  const ModelSpec spec = opened(config);
  EXPECT_EQ(spec.head_dim, 8);
  EXPECT_EQ(spec.kv_heads, 4);
  EXPECT_FALSE(spec.tied_embeddings);
  EXPECT_EQ(spec.norm_epsilon, 1e-6);
  EXPECT_EQ(spec.rope_theta, 10000.0);
}

TEST(ModelSpec, PrefersTheThetaOfRopeParameters) {
  json config = test::config_of({});
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500.0}};
  EXPECT_EQ(opened(config).rope_theta, 500.0);
}

struct BadConfig {
  std::string key;
  json value;  // null: the key is removed
  std::string expected;
};

class RefusedConfig : public testing::TestWithParam<BadConfig> {};

TEST_P(RefusedConfig, NamesFileKeyAndValue) {
  json config = test::config_of({});
  config[GetParam().key] = GetParam().value;
  const std::string complaint = complaint_about(config.dump());
  EXPECT_THAT(complaint, HasSubstr("config.json: " + GetParam().key));
  EXPECT_THAT(complaint, HasSubstr(GetParam().expected));
}

INSTANTIATE_TEST_SUITE_P(
    ModelSpec, RefusedConfig,
    testing::Values(BadConfig{"model_type", "mamba", "supported: qwen3"}, BadConfig{"model_type", 3, "expected a string"},
                    BadConfig{"vocab_size", nullptr, "is missing"}, BadConfig{"hidden_size", "32", "positive integer"},
                    BadConfig{"hidden_size", 32.5, "positive integer"}, BadConfig{"num_hidden_layers", 0, "is 0"},
                    BadConfig{"intermediate_size", -4, "is -4"},
                    BadConfig{"num_attention_heads", uint64_t{18446744073709551615u}, "positive integer"},
                    BadConfig{"num_key_value_heads", 3, "does not divide"}, BadConfig{"head_dim", 7, "even number"},
                    BadConfig{"rms_norm_eps", -1.0, "positive number"}, BadConfig{"rope_theta", "big", "positive number"},
                    BadConfig{"hidden_act", "gelu", "only silu"}, BadConfig{"attention_bias", true, "not supported"},
                    BadConfig{"attention_bias", "no", "true or false"},
                    BadConfig{"use_sliding_window", true, "not supported"},
                    BadConfig{"layer_types", {"full_attention", "sliding_attention"}, "sliding_attention"},
                    BadConfig{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}, "yarn"},
                    BadConfig{"rope_scaling", "yarn", "expected an object"},
                    BadConfig{"rope_parameters", {{"rope_type", "llama3"}}, "llama3"},
                    BadConfig{"tie_word_embeddings", 1, "true or false"}));

TEST(ModelSpec, RefusesFilesThatAreNotAConfig) {
  EXPECT_THAT(complaint_about("{\"model_type\": "), HasSubstr("not a JSON object"));
  EXPECT_THAT(complaint_about("[1, 2]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(complaint_about(""), HasSubstr("not a JSON object"));
  const TemporaryFolder empty;
  EXPECT_THROW(ModelSpec::open(empty.path()), BadInput);
}

TEST(ModelSpec, ListsTheTensorSizesThatDivide) {
  const ModelSpec spec = opened(test::config_of({.heads = 8, .kv_heads = 4, .head_dim = 8, .intermediate = 48}));
  for (const int64_t good : {1, 2, 4}) EXPECT_NO_THROW(spec.check_tensor_parallel(good));
  for (const int64_t bad : {-1, 0, 3, 8}) {
    try {
      spec.check_tensor_parallel(bad);
      ADD_FAILURE() << bad << " was accepted";
    } catch (const BadInput& error) {
      EXPECT_THAT(error.what(), HasSubstr("these would: 1, 2, 4"));
    }
  }
}

}  // namespace
}  // namespace flashmorph
