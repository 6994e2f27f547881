#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/model/parameter.h"
#include "distributed/parallel/mesh.h"
#include "distributed/parallel/zero.h"
#include "proto/run.pb.h"

namespace flashmorph {

// Every tensor is seen as a matrix, dim 0 by all others: a vector is a column, a scalar one element.
struct Rectangle {
  int64_t row = 0;
  int64_t column = 0;
  int64_t rows = 0;
  int64_t columns = 0;

  int64_t area() const { return rows * columns; }
  bool operator==(const Rectangle&) const = default;
};

Rectangle matrix_of(const std::vector<int64_t>& shape);          // the whole of it, at (0, 0)
Rectangle intersection(const Rectangle& a, const Rectangle& b);  // of area 0 when they do not touch
bool contains(const Rectangle& outer, const Rectangle& inner);
at::Tensor part_of(const at::Tensor& values, const Rectangle& place, const Rectangle& part);  // values lie at `place`

// Elements [first, first + count) of a rectangle, row by row, as at most three rectangles in that order: the rest of a
// row, whole rows, the beginning of a row.
std::vector<Rectangle> rectangles_of(const Rectangle& whole, int64_t first, int64_t count);

// A rectangle of a global tensor that this rank holds. Where and how large it is says nothing of the mesh, so that
// another mesh can read what this one wrote.
struct Region {
  std::string name;            // the global tensor's
  std::vector<int64_t> shape;  // the global tensor's
  Rectangle place;
  at::Tensor values;          // [rows, columns], sharing storage with whoever trains it
  bool is_saved_here = true;  // false: another rank saves the same elements
};
using Regions = std::vector<Region>;

// What AdamW's next step on these parameters depends on: under each one's global name its value (at least float32), and
// behind the name .first_moment and .second_moment. `shares_states`: the optimizer's states are shared out over the
// data ranks, so that each of them saves its own; otherwise the first data rank saves.
Regions regions_of(const Parameters& parameters, const DataShardedAdamW& optimizer, const Mesh& mesh,
                   bool shares_states);

// The same for the elements [first, first + n) of a vector of `all` elements that an AdamW of one parameter trains.
Regions regions_of(const std::string& name, const AdamW::State& state, int64_t first, int64_t all, bool is_saved_here);

proto::TensorSlice slice_of(const Region& region);
Rectangle place_of(const proto::TensorSlice& slice);
std::string key_of(const proto::TensorSlice& slice);  // its name in a shard's file: "NAME@ROW,COLUMN"

}  // namespace flashmorph
