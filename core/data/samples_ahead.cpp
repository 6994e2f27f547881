#include "core/data/samples_ahead.h"

#include <ATen/ATen.h>

namespace flashmorph {

SamplesAhead::~SamplesAhead() {
  if (ahead_.valid()) ahead_.wait();
}

Batch SamplesAhead::made(Place place) const {
  Batch batch = stream_.micro_batch(place.step, place.index);
  if (page_locked_) batch.tokens_BT = batch.tokens_BT.pin_memory();
  return batch;
}

Batch SamplesAhead::micro_batch(int64_t step, int64_t index) {
  const Place here{step, index};
  Batch batch = ahead_.valid() && next_ == here ? ahead_.get() : made(here);
  if (ahead_.valid()) ahead_.wait();
  const bool goes_on = index + 1 < mine_(step).last;
  next_ = goes_on ? Place{step, index + 1} : Place{step + 1, step + 1 < stream_.steps() ? mine_(step + 1).first : 0};
  ahead_ = next_.step < stream_.steps() ? std::async(std::launch::async, [this, place = next_] { return made(place); })
                                        : std::future<Batch>();
  return batch;
}

}  // namespace flashmorph
