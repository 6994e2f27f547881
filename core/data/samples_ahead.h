#pragma once

#include <functional>
#include <future>
#include <utility>

#include "core/data/sample_stream.h"

namespace flashmorph {

// A stream's micro-batches, the next one made on a thread of its own while this one is computed with. What comes next
// is taken from the order in which a rank asks: its micro-batches of a step, then those of the next step.
class SamplesAhead {
 public:
  struct Range {  // of micro-batches of a step
    int64_t first, last;
  };

  // mine: this rank's part of a step. page_locked: tokens lie in memory that a device copies from without waiting.
  SamplesAhead(const SampleStream& stream, std::function<Range(int64_t step)> mine, bool page_locked)
      : stream_(stream), mine_(std::move(mine)), page_locked_(page_locked) {}
  ~SamplesAhead();

  // Any order is right; the expected one is fast.
  Batch micro_batch(int64_t step, int64_t index);

 private:
  struct Place {
    int64_t step, index;
    bool operator==(const Place&) const = default;
  };

  Batch made(Place place) const;

  const SampleStream& stream_;
  std::function<Range(int64_t)> mine_;
  bool page_locked_;
  Place next_{-1, -1};
  std::future<Batch> ahead_;
};

}  // namespace flashmorph
