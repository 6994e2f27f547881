#include "distributed/forecast/cards.h"

#include <algorithm>
#include <ranges>

#include "core/base/bad_input.h"
#include "core/base/listed.h"

namespace flashmorph {
namespace {

constexpr double kTera = 1e12, kGiga = 1e9;

// Of the memory's reached rate, what the recurrences' kernels reach with the tensors at their boundary: they read some
// twice, and their states' chain of chunks does not fill the card.
double recurrence_share(Kernel::Kind kind) {
  switch (kind) {
    case Kernel::Kind::lightning:
      return 0.37;
    case Kernel::Kind::gated_linear:
      return 0.19;
    case Kernel::Kind::scalar_gated:
      return 0.10;  // not fused: products and small kernels
    case Kernel::Kind::gated_delta:
      return 0.09;
    default:
      return 1.0;
  }
}

}  // namespace

const std::vector<Card>& known_cards() {
  static const std::vector<Card> cards = {
      {"a100", 312 * kTera, 0, 19.5 * kTera, 80 * kGiga, 2.04 * kTera, 300 * kGiga, 50 * kGiga, 8},
      {"h100", 989 * kTera, 1979 * kTera, 67 * kTera, 80 * kGiga, 3.35 * kTera, 450 * kGiga, 50 * kGiga, 8},
      {"h200", 989 * kTera, 1979 * kTera, 67 * kTera, 141 * kGiga, 4.8 * kTera, 450 * kGiga, 50 * kGiga, 8},
      {"b200", 2250 * kTera, 4500 * kTera, 75 * kTera, 180 * kGiga, 8 * kTera, 900 * kGiga, 50 * kGiga, 8}};
  return cards;
}

std::string card_names() { return listed(std::views::transform(known_cards(), &Card::name)); }

const Card& card_named(const std::string& name) {
  const auto found = std::ranges::find(known_cards(), name, &Card::name);
  if (found != known_cards().end()) return *found;
  throw BadInput("--card", fmt::format("is '{}', expected one of: {}", name, card_names()));
}

double seconds_of(const Kernel& kernel, const Card& card) {
  const double peak = card.flops(kernel.dtype);
  const double share = kernel.dtype == at::kFloat8_e4m3fn ? kFloat8ProductShare : kProductShare;
  const double moved = kernel.bytes / (card.bytes_a_second * kMemoryShare);
  switch (kernel.kind) {
    case Kernel::Kind::product:  // loads run beside the products
      return kBetweenKernels + std::max(kernel.flop / (peak * share), moved);
    case Kernel::Kind::attention:
      return kBetweenKernels + kernel.flop / (peak * kAttentionShare) + moved;
    default:
      return kBetweenKernels + moved / recurrence_share(kernel.kind);
  }
}

bool fits(const StageForecast& stage, const Card& card) {
  return std::ranges::all_of(stage.ranks, [&](const RankUse& use) {
    return static_cast<double>(use.peak.total()) + kBesideTensors <= kFillable * card.memory_bytes;
  });
}

}  // namespace flashmorph
