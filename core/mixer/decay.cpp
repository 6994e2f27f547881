#include "core/mixer/decay.h"

#include <fmt/format.h>

#include <cmath>

#include "core/base/bad_input.h"
#include "core/base/listed.h"

namespace flashmorph {
namespace {

// ALiBi's slopes 2^(-8(h+1)/H) for H a power of two; else those of the next lower power, then every second of the next
// up.
std::vector<double> slopes(int64_t heads) {
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  std::vector<double> values;
  for (int64_t h = 0; h < power; ++h)
    values.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(power)));
  for (int64_t h = 0; power + h < heads; ++h)
    values.push_back(std::exp2(-8.0 * static_cast<double>(2 * h + 1) / static_cast<double>(2 * power)));
  return values;
}

}  // namespace

std::vector<std::string> decay_rules() { return {"alibi", "retnet", "layered"}; }

std::vector<double> log_decays(const std::string& rule, int64_t heads, int64_t layer, int64_t layers) {
  std::vector<double> decays;
  const auto share = static_cast<double>(layer) / static_cast<double>(layers);
  const std::vector<double> alibi = slopes(heads);
  for (int64_t h = 0; h < heads; ++h) {
    if (rule == "alibi") {
      decays.push_back(-alibi[h]);
    } else if (rule == "retnet") {
      decays.push_back(std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
    } else if (rule == "layered") {
      decays.push_back(-8.0 / static_cast<double>(heads) * (1.0 - share) * static_cast<double>(h));
    } else {
      throw BadInput("mixer.decay", fmt::format("'{}' is not a known rule; known: {}", rule, listed(decay_rules())));
    }
  }
  return decays;
}

}  // namespace flashmorph
