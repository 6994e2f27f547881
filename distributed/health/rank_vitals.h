#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// How one rank did over the last steps.
struct RankVitals {
  int64_t rank = 0;
  std::string host;
  double step_seconds = 0.0;           // wall time of a step, the mean
  double communication_seconds = 0.0;  // of it, inside collectives and messages, waiting for other ranks included
  int64_t resident_bytes = 0;          // memory of the process

  // The rank's own work. On a card it is the time of the host, which NCCL's calls do not hold up.
  double own_seconds() const { return step_seconds - communication_seconds; }
};

// Of the ranks' own work; of an even number the faster one in the middle.
double median_own_seconds(const std::vector<RankVitals>& ranks);

// Those whose own work takes more than `factor` times the median's; differences below 10 ms a step are noise.
std::vector<RankVitals> stragglers(const std::vector<RankVitals>& ranks, double factor);

// Measures this rank between two looks.
class VitalSigns {
 public:
  // hosts: by rank. The time starts here.
  VitalSigns(Communicator& world, std::vector<std::string> hosts);

  // Of every rank, on every rank: a step's means since the last look. Collective, one small all-gather.
  std::vector<RankVitals> look(int64_t steps);

 private:
  Communicator& world_;
  std::vector<std::string> hosts_;
  Stopwatch since_;
  double inside_before_;
};

}  // namespace flashmorph
