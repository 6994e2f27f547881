#include "core/model/rope.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

namespace flashmorph {
namespace {

constexpr double kTurn = 2.0 * std::numbers::pi;

Rope::Kind kind_of(const std::string& type, const ConfigJson& config, const std::string& key) {
  static const std::map<std::string, Rope::Kind> known = {{"default", Rope::Kind::plain},
                                                          {"linear", Rope::Kind::linear},
                                                          {"llama3", Rope::Kind::llama3},
                                                          {"yarn", Rope::Kind::yarn}};
  const auto found = known.find(type);
  if (found != known.end()) return found->second;
  if (type == "dynamic" || type == "longrope")
    config.fail(key, "asks for " + type +
                         ", whose frequencies change with the sequence's length; supported: default, "
                         "linear, llama3, yarn");
  config.fail(key, "asks for '" + type + "', supported: default, linear, llama3, yarn");
}

// Wavelengths beyond the original context are stretched, those well inside it kept, smoothly in between (Llama 3.1).
double llama3(double frequency, const Rope& rope) {
  const double turns = rope.original_positions * frequency / kTurn;  // within the original context
  const double kept = std::clamp(
      (turns - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor), 0.0, 1.0);
  return frequency * (kept + (1.0 - kept) / rope.factor);
}

// The channel pair (a real number) that turns so often within the original context.
double pair_that_turns(double turns, const Rope& rope, int64_t head_dim) {
  return static_cast<double>(head_dim) * std::log(rope.original_positions / (turns * kTurn)) /
         (2.0 * std::log(rope.theta));
}

// YaRN (arXiv 2309.00071), "NTK by parts": a linear ramp over the channel pairs between the two rotation counts.
double yarn(double frequency, int64_t pair, const Rope& rope, int64_t head_dim) {
  double low = pair_that_turns(rope.beta_fast, rope, head_dim), high = pair_that_turns(rope.beta_slow, rope, head_dim);
  if (rope.whole_pairs) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (high == low) high += 0.001;  // a step instead of a ramp
  const double stretched = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
  return frequency * (1.0 - stretched + stretched / rope.factor);
}

// The longest position before the context became longer: beside the settings (Phi-3), among them, or the longest now.
double positions_before(const ConfigJson& settings, const ConfigJson& config) {
  constexpr const char* kKey = "original_max_position_embeddings";
  if (config.has(kKey)) return config.number(kKey);
  return settings.has(kKey) ? settings.number(kKey) : config.number("max_position_embeddings");
}

void read_llama3(Rope& rope, const ConfigJson& settings) {
  rope.factor = settings.number("factor");
  rope.low_frequency_factor = settings.number("low_freq_factor");
  rope.high_frequency_factor = settings.number("high_freq_factor");
  if (!(rope.high_frequency_factor > rope.low_frequency_factor))
    settings.fail("high_freq_factor", "must be greater than low_freq_factor");
}

// How much larger scores are made in a context that became `factor` times longer.
double yarn_scale(double factor, double strength) {
  return factor <= 1.0 ? 1.0 : 0.1 * strength * std::log(factor) + 1.0;
}

void read_yarn(Rope& rope, const ConfigJson& settings, const ConfigJson& config) {
  const bool is_null = settings.values().contains("factor") && !settings.has("factor");
  rope.factor =
      is_null ? config.number("max_position_embeddings") / rope.original_positions : settings.number("factor");
  rope.beta_fast = settings.number("beta_fast", 32.0);
  rope.beta_slow = settings.number("beta_slow", 1.0);
  rope.whole_pairs = settings.flag("truncate", true);
  const bool both = settings.has("mscale") && settings.has("mscale_all_dim");
  const double usual = both ? yarn_scale(rope.factor, settings.number("mscale")) /
                                  yarn_scale(rope.factor, settings.number("mscale_all_dim"))
                            : yarn_scale(rope.factor, 1.0);
  rope.scale = settings.number("attention_factor", usual);
}

// Under `key`, or under its full_attention where the settings are given by layer type.
ConfigJson settings_of(const ConfigJson& config, const std::string& key) {
  ConfigJson settings = config.inside(key);
  const bool by_type = std::ranges::any_of(settings.values(), [](const auto& value) { return value.is_object(); });
  if (by_type && !settings.has("full_attention"))
    settings.fail("full_attention", "is missing, though the settings are given by layer type");
  return by_type ? settings.inside("full_attention") : settings;
}

}  // namespace

Rope Rope::of(const ConfigJson& config, double usual_theta) {
  const std::string key = config.inside("rope_scaling").values().empty() ? "rope_parameters" : "rope_scaling";
  const ConfigJson settings = settings_of(config, key);
  Rope rope;
  rope.kind = kind_of(settings.text("rope_type", settings.text("type", "default")), config, key);
  rope.theta = settings.number("rope_theta", config.number("rope_theta", usual_theta));
  if (rope.theta <= 1.0) config.fail("rope_theta", "must be greater than 1");
  for (const ConfigJson& place : {settings, config})
    if (place.number("partial_rotary_factor", 1.0) != 1.0)
      place.fail("partial_rotary_factor", "is not 1, rotating a part of the channels is not supported");
  if (rope.kind == Kind::llama3 || rope.kind == Kind::yarn)
    rope.original_positions = positions_before(settings, config);
  if (rope.kind == Kind::linear) rope.factor = settings.number("factor");
  if (rope.kind == Kind::llama3) read_llama3(rope, settings);
  if (rope.kind == Kind::yarn) read_yarn(rope, settings, config);
  return rope;
}

std::vector<double> Rope::frequencies(int64_t head_dim) const {
  std::vector<double> frequencies;
  for (int64_t pair = 0; pair < head_dim / 2; ++pair) {
    const double plain = std::pow(theta, -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim));
    switch (kind) {
      case Kind::plain:
        frequencies.push_back(plain);
        break;
      case Kind::linear:
        frequencies.push_back(plain / factor);
        break;
      case Kind::llama3:
        frequencies.push_back(llama3(plain, *this));
        break;
      case Kind::yarn:
        frequencies.push_back(yarn(plain, pair, *this, head_dim));
        break;
    }
  }
  return frequencies;
}

}  // namespace flashmorph
