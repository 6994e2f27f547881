#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace flashmorph {

// A group of ranks as the log knows it: every split of the world is one more, in the same order on all ranks.
struct CallGroup {
  std::string name;
  std::vector<int> members;  // ranks of the world
  int64_t collectives = 0;   // of this rank, so far
};

// In place of a peer: a collective; a wait for messages that were sent before.
constexpr int kAll = -1, kSent = -2;

// One call of a communicator as a rank remembers it.
struct CallRecord {
  size_t group = 0;  // of CallLog::groups()
  const char* operation = "";
  int peer = kAll;             // rank in the group, of send and receive
  int64_t number = 0;          // of the collectives of this rank in this group, from 1; a message has the last one's
  std::vector<int64_t> sizes;  // of this rank's tensor, which has a dtype
  at::ScalarType dtype = at::ScalarType::Undefined;
  int64_t bytes = 0;
  int64_t step = 0;  // what the log was told last
  std::chrono::steady_clock::time_point start;
  double seconds = -1.0;  // that it took; negative: this rank is inside
};

// "all_reduce of Float [3, 4] (48 bytes)", "receive of ... from 2", "barrier".
std::string text_of(const CallRecord& call);

// The last calls of one rank in all its groups, and the time inside of them. One thread calls; others, the watchdog's,
// may look at any moment.
class CallLog {
 public:
  static constexpr size_t kKept = 64;

  size_t add_group(std::string name, std::vector<int> members);
  void at_step(int64_t step) { step_ = step; }

  // A call between these is part of the outer one: device tensors go through the host's communicator.
  void begin(size_t group, const char* operation, int peer, const at::Tensor* values);
  void end();

  // A card goes on with the current call after the host has left it, until whoever watches the card says that it is
  // done.
  int64_t goes_on_on_card();
  void done_on_card(int64_t ticket);

  double seconds_inside() const;              // since the start, the current call left out
  std::vector<CallRecord> last() const;       // oldest first
  std::optional<CallRecord> on_card() const;  // the oldest call that the card is not done with
  std::vector<CallGroup> groups() const;

 private:
  mutable std::mutex mutex_;
  std::vector<CallGroup> groups_;
  std::array<CallRecord, kKept> ring_;
  std::map<int64_t, CallRecord> on_card_;  // by ticket, in the order of the calls
  int64_t tickets_ = 0;
  size_t calls_ = 0;
  int depth_ = 0;
  int64_t step_ = 0;
  double seconds_inside_ = 0.0;
};

}  // namespace flashmorph
