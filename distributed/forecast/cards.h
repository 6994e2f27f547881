#pragma once

#include <string>
#include <vector>

#include "distributed/forecast/run_forecast.h"

namespace flashmorph {

// A card and what joins cards, by their makers' data sheets.
struct Card {
  std::string name;
  double bfloat16_flops;  // a second, dense
  double float32_flops;   // a second, without tensor cores
  double memory_bytes;
  double link_bytes;     // a second, one way, to the cards of its host
  double network_bytes;  // a second, one way, to other hosts: one 400 Gb/s adapter a card
  int64_t cards_a_host;
};

const std::vector<Card>& known_cards();
std::string card_names();                         // "a100, h100, ..."
const Card& card_named(const std::string& name);  // BadInput at --card, naming the known ones

// The share of a card's peak that a step's matrix products and attention come to, elementwise work in between included:
// a little below the 0.43 to 0.56 of the measured steps in docs/benchmarks (Qwen3-1.7B's and 8B's shapes, one H200).
inline constexpr double kReachedShare = 0.4;
// Before a message's first byte arrives, in seconds.
inline constexpr double kLatency = 15e-6;
// What a process takes beside its tensors, in bytes (context, libraries' workspaces), and of a card's memory the share
// that the allocator can fill before it finds no place any more.
inline constexpr double kBesideTensors = 1.5 * (1 << 30);
inline constexpr double kFillable = 0.95;

// An estimate of a step: the slowest pipeline rank's work and its messages inside the tensor group, times the
// pipeline's fill and drain, and the messages of the other groups.
double seconds_of_step(const StageForecast& stage, const Card& card, at::ScalarType dtype);

// Whether all ranks' tensors have room on such cards.
bool fits(const StageForecast& stage, const Card& card);

}  // namespace flashmorph
