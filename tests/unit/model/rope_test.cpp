// Frequencies against their definitions where they are simple; the golden logits of the families check the rest.
#include "core/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

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

}  // namespace
}  // namespace flashmorph
