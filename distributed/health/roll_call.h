#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "distributed/communication/call_log.h"

namespace flashmorph {

// What a rank answers when a deadline has passed somewhere: where it is, and its last calls. A file
// RUN/health/rank-N.json.
struct RankAnswer {
  struct Call {
    size_t group = 0;          // the number of the split that made it
    std::string name;          // "data"
    std::vector<int> members;  // ranks of the world
    std::string call;          // "all_reduce of Float [4] (16 bytes)"
    bool is_message = false;   // between two ranks of the group
    int64_t number = 0;        // of this rank's collectives in the group
    int64_t step = 0;
    double started = 0.0;   // Unix time
    double seconds = -1.0;  // negative: still inside
  };

  int rank = 0;
  std::string host;
  std::string phase;     // "align, step 12"
  double seconds = 0.0;  // in that phase
  std::vector<Call> calls;
  std::optional<Call> on_card;  // the oldest one that the card is not done with, though the host may have left it

  // The call in which this rank, or its card, waits for others.
  const Call* waits_in() const;
};

// The answer's calls, from a rank's log.
void add_calls(const CallLog& log, RankAnswer& answer);

// The ranks of a job leave their answers in a folder that all of them see, without a collective: a rank that hangs or
// is dead gives none. The first to call speaks for the job.
class RollCall {
 public:
  // hosts: by rank.
  RollCall(std::filesystem::path folder, std::vector<std::string> hosts);

  void clear() const;  // what an earlier start left; makes the folder. By one rank, before the others call or answer
  bool call() const;   // whether this rank is the first
  bool was_called() const;
  bool all_answered() const;
  void answer(const RankAnswer& answer) const;
  std::vector<std::optional<RankAnswer>> answers() const;  // by rank, those that are there

  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  std::vector<std::string> hosts_;
};

// The first collective of a group that not all of its members called alike: "rank 2 called barrier as number 118 of
// group data (ranks 0, 1, 2, 3); ranks 0, 1, 3 called all_reduce of Float [4] (16 bytes)". Empty when there is none.
std::string first_divergence(const std::vector<std::optional<RankAnswer>>& answers);

// A line for each rank that others may be waiting for: it gave no answer, or it is in no call. Then the ranks that
// wait.
std::string who_is_missing(const std::vector<std::optional<RankAnswer>>& answers,
                           const std::vector<std::string>& hosts);

}  // namespace flashmorph
