#pragma once

#include <vector>

#include "distributed/forecast/cards.h"
#include "distributed/forecast/run_forecast.h"

namespace flashmorph {

struct StepTime {
  double seconds;
  std::vector<double> waits;  // by pipeline rank: in which its card has nothing to do but wait for other ranks
};

// A step of a stage on such cards: the traces that its ranks rehearsed, played beside each other. Each rank has a host,
// which calls one operator after the other, a card, which does a kernel when its host has called it and the one before
// is done, and a way to the other ranks, on which one message is under way at a time. Micro-batches that were not
// rehearsed take each as long as the slowest pipeline rank is at one.
StepTime time_of_step(const StageForecast& stage, const Card& card);

// The same of one step as the ranks' traces have it, one for each pipeline rank. operator_on_host: in seconds.
StepTime time_of(const std::vector<const Trace*>& traces, const MeshShape& mesh, const Card& card,
                 double operator_on_host = kOperatorOnHost);

}  // namespace flashmorph
