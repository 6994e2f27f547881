#include "distributed/forecast/cards.h"

#include <algorithm>
#include <ranges>

#include "core/base/bad_input.h"
#include "core/base/listed.h"

namespace flashmorph {
namespace {

constexpr double kTera = 1e12, kGiga = 1e9;

// The bytes that cross a rank's link for one operation on tensors of so many bytes: rings for the collectives.
double on_the_wire(const std::string& operation, double bytes, int64_t ranks) {
  const auto n = static_cast<double>(ranks);
  if (operation == "all_reduce") return 2.0 * (n - 1.0) / n * bytes;
  if (operation == "all_gather") return (n - 1.0) * bytes;
  if (operation == "reduce_scatter") return (n - 1.0) / n * bytes;
  return operation == "receive" ? 0.0 : bytes;  // what one sends another receives
}

int64_t ranks_of(const std::string& group, const MeshShape& mesh) {
  if (group == "tensor") return mesh.tensor;
  if (group == "pipeline") return mesh.pipeline;
  if (group == "pipeline_ends") return std::min<int64_t>(2, mesh.pipeline);
  return group == "data" ? mesh.data : mesh.tensor * mesh.pipeline;
}

// Neighbouring ranks share a host; a group is on one when all that lies between its first and last rank is.
int64_t span_of(const std::string& group, const MeshShape& mesh) {
  if (group == "tensor") return mesh.tensor;
  return group == "data" ? mesh.ranks() : mesh.tensor * mesh.pipeline;
}

double seconds_in(const std::string& group, const RankUse& use, const MeshShape& mesh, const Card& card) {
  const double bandwidth = span_of(group, mesh) <= card.cards_a_host ? card.link_bytes : card.network_bytes;
  double seconds = 0.0;
  for (const auto& [place, sent] : use.traffic)
    if (place.first == group)
      seconds += on_the_wire(place.second, sent.bytes, ranks_of(group, mesh)) / bandwidth + sent.calls * kLatency;
  return seconds;
}

}  // namespace

const std::vector<Card>& known_cards() {
  static const std::vector<Card> cards = {{"a100", 312 * kTera, 19.5 * kTera, 80 * kGiga, 300 * kGiga, 50 * kGiga, 8},
                                          {"h100", 989 * kTera, 67 * kTera, 80 * kGiga, 450 * kGiga, 50 * kGiga, 8},
                                          {"h200", 989 * kTera, 67 * kTera, 141 * kGiga, 450 * kGiga, 50 * kGiga, 8},
                                          {"b200", 2250 * kTera, 75 * kTera, 180 * kGiga, 900 * kGiga, 50 * kGiga, 8}};
  return cards;
}

std::string card_names() { return listed(std::views::transform(known_cards(), &Card::name)); }

const Card& card_named(const std::string& name) {
  const auto found = std::ranges::find(known_cards(), name, &Card::name);
  if (found != known_cards().end()) return *found;
  throw BadInput("--card", fmt::format("is '{}', expected one of: {}", name, card_names()));
}

double seconds_of_step(const StageForecast& stage, const Card& card, at::ScalarType dtype) {
  const double peak = dtype == at::kBFloat16 ? card.bfloat16_flops : card.float32_flops;
  const MeshShape& mesh = stage.layout.shape;
  double slowest = 0.0, between = 0.0;
  for (const RankUse& use : stage.ranks) {
    slowest = std::max(slowest, use.flop / (peak * kReachedShare) + seconds_in("tensor", use, mesh, card));
    double behind_layers = 0.0;
    for (const char* group : {"pipeline", "pipeline_ends", "data", "replica"})
      behind_layers += seconds_in(group, use, mesh, card);
    between = std::max(between, behind_layers);
  }
  const auto micro_batches = static_cast<double>(stage.shape.micro_batches);
  return slowest * (micro_batches + static_cast<double>(mesh.pipeline) - 1.0) / micro_batches + between;
}

bool fits(const StageForecast& stage, const Card& card) {
  return std::ranges::all_of(stage.ranks, [&](const RankUse& use) {
    return static_cast<double>(use.peak.total()) + kBesideTensors <= kFillable * card.memory_bytes;
  });
}

}  // namespace flashmorph
