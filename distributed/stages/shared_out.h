#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "distributed/parallel/mesh.h"

namespace flashmorph {

// Items of a measurement, 0 to count - 1, shared out over the data ranks in stretches.
struct OwnItems {
  int64_t first, last;
  OwnItems(int64_t count, const Mesh& mesh)
      : first(count * mesh.data_rank() / mesh.shape().data), last(count * (mesh.data_rank() + 1) / mesh.shape().data) {}
};

// Measures this data rank's items, `few` at a time. Before each part every rank calls `before`, as often on each, with
// the items that this rank has done: it may communicate.
inline void in_parts(int64_t count, int64_t few, const Mesh& mesh,
                     const std::function<void(int64_t first, int64_t last)>& measure,
                     const std::function<void(int64_t done)>& before) {
  const OwnItems own(count, mesh);
  const int64_t most = (count + mesh.shape().data - 1) / mesh.shape().data;
  for (int64_t done = 0; done < most; done += few) {
    const int64_t first = std::min(own.last, own.first + done);
    before(first - own.first);
    if (first < own.last) measure(first, std::min(own.last, first + few));
  }
}

}  // namespace flashmorph
