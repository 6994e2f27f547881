#pragma once

#include <string>
#include <vector>

#include "core/rehearsal/kernel_counter.h"
#include "distributed/forecast/run_forecast.h"

namespace flashmorph {

// A card and what joins cards, by their makers' data sheets.
struct Card {
  std::string name;
  double bfloat16_flops;  // a second, dense
  double float8_flops;    // 0: it has no such products
  double float32_flops;   // a second, without tensor cores
  double memory_bytes;    // that it has,
  double bytes_a_second;  // and that it reads and writes of them
  double link_bytes;      // a second, one way, to the cards of its host
  double network_bytes;   // a second, one way, to other hosts: one 400 Gb/s adapter a card
  int64_t cards_a_host;

  double flops(at::ScalarType dtype) const {
    return dtype == at::kBFloat16 ? bfloat16_flops : dtype == at::kFloat8_e4m3fn ? float8_flops : float32_flops;
  }
};

const std::vector<Card>& known_cards();
std::string card_names();                         // "a100, h100, ..."
const Card& card_named(const std::string& name);  // BadInput at --card, naming the known ones

// The shares of these numbers that the program reaches, the same for all cards; docs/plan.md says where each was
// measured.
inline constexpr double kProductShare = 0.75, kFloat8ProductShare = 0.62, kAttentionShare = 0.56, kMemoryShare = 0.88,
                        kLinkShare = 0.5;
// Of a card's time while a message is under way: what moves it computes nothing else.
inline constexpr double kTakenByMessages = 0.25;
// In seconds: a card between two kernels, or at the ends of one, when it is not full; a host with one operator, its
// part in the graph included; with one that is in no graph; before a message's first byte arrives.
inline constexpr double kBetweenKernels = 5e-6, kOperatorOnHost = 25e-6, kOperatorWithoutGraph = 12e-6,
                        kLatency = 15e-6;
// What a process takes beside its tensors, in bytes (context, libraries' workspaces), and of a card's memory the share
// that the allocator can fill before it finds no place any more.
inline constexpr double kBesideTensors = 1.5 * (1 << 30);
inline constexpr double kFillable = 0.95;

double seconds_of(const Kernel& kernel, const Card& card);

// Whether all ranks' tensors have room on such cards.
bool fits(const StageForecast& stage, const Card& card);

}  // namespace flashmorph
