// Frequencies against their definitions where they are simple; the golden logits of the families check the rest.
#include "core/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr int64_t kHeadDim = 16;

std::vector<double> frequencies(const nlohmann::json& config) {
  return Rope::of(ConfigJson(config, "config.json")).frequencies(kHeadDim);
}

double plain(size_t pair) { return std::pow(500.0, -2.0 * static_cast<double>(pair) / kHeadDim); }

TEST(Rope, LinearDividesEveryFrequency) {
  const auto scaled = frequencies({{"rope_theta", 500.0}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}});
  for (size_t pair = 0; pair < scaled.size(); ++pair) EXPECT_NEAR(scaled[pair], plain(pair) / 2.5, 1e-15);
}

TEST(Rope, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const auto scaled = frequencies({{"rope_parameters",
                                    {{"rope_type", "llama3"},
                                     {"rope_theta", 500.0},
                                     {"factor", 4.0},
                                     {"original_max_position_embeddings", 64},
                                     {"low_freq_factor", 1.0},
                                     {"high_freq_factor", 4.0}}}});
  int kept = 0, between = 0, stretched = 0;
  for (size_t pair = 0; pair < scaled.size(); ++pair) {
    const double wave = 2.0 * std::numbers::pi / plain(pair);
    if (wave < 64.0 / 4.0) {
      ++kept;
      EXPECT_DOUBLE_EQ(scaled[pair], plain(pair));
    } else if (wave > 64.0) {
      ++stretched;
      EXPECT_DOUBLE_EQ(scaled[pair], plain(pair) / 4.0);
    } else {
      ++between;
      const double smooth = (64.0 / wave - 1.0) / (4.0 - 1.0);
      EXPECT_NEAR(scaled[pair], (1.0 - smooth) * plain(pair) / 4.0 + smooth * plain(pair), 1e-15);
    }
  }
  EXPECT_TRUE(kept > 0 && between > 0 && stretched > 0) << "the test sees all three parts";
}

TEST(Rope, YarnScalesCosAndSin) {
  nlohmann::json config = {
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}}}};
  EXPECT_DOUBLE_EQ(Rope::of(ConfigJson(config, "")).scale, 0.1 * std::log(4.0) + 1.0);
  config["rope_scaling"]["attention_factor"] = 1.25;
  EXPECT_EQ(Rope::of(ConfigJson(config, "")).scale, 1.25);
}

TEST(Rope, AnEmptyScalingIsNone) {
  const auto scaled = frequencies({{"rope_scaling", nlohmann::json::object()}, {"rope_theta", 500.0}});
  for (size_t pair = 0; pair < scaled.size(); ++pair) EXPECT_DOUBLE_EQ(scaled[pair], plain(pair));
}

// tests/golden/rope.json: what transformers makes of each way to write it, in float32.
TEST(Rope, EveryWayToWriteItIsReadAsTransformersReadsIt) {
  const nlohmann::json ways = nlohmann::json::parse(std::ifstream("tests/golden/rope.json"));
  ASSERT_GE(ways.size(), 13U);
  for (const nlohmann::json& way : ways) {
    nlohmann::json config = way["config"];
    config["max_position_embeddings"] = 2048;
    const Rope rope = Rope::of(ConfigJson(config, "config.json"));
    EXPECT_NEAR(rope.scale, way["scale"].get<double>(), 1e-12) << config;
    const std::vector<double> found = rope.frequencies(32), expected = way["frequencies"];
    ASSERT_EQ(found.size(), expected.size());
    for (size_t pair = 0; pair < found.size(); ++pair)
      EXPECT_NEAR(found[pair], expected[pair], 2e-6 * expected[pair]) << config << ", pair " << pair;
  }
}

TEST(Rope, SettingsByLayerTypeAreThoseOfFullAttention) {
  const nlohmann::json plain_500 = {{"rope_type", "default"}, {"rope_theta", 500.0}},
                       plain_10 = {{"rope_type", "default"}, {"rope_theta", 10.0}};
  const nlohmann::json config = {{"rope_theta", 7.0},
                                 {"rope_parameters", {{"sliding_attention", plain_10}, {"full_attention", plain_500}}}};
  const auto found = frequencies(config);
  for (size_t pair = 0; pair < found.size(); ++pair) EXPECT_DOUBLE_EQ(found[pair], plain(pair));
  EXPECT_THROW(frequencies({{"rope_parameters", {{"sliding_attention", plain_10}}}}), BadInput);
}

}  // namespace
}  // namespace flashmorph
