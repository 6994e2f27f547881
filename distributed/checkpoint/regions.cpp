#include "distributed/checkpoint/regions.h"

#include <ATen/ATen.h>

#include "distributed/parallel/gradients.h"

namespace flashmorph {
namespace {

struct GlobalPlace {
  std::vector<int64_t> shape;
  Rectangle place;
};

// Where this rank's slice of a parameter lies in the whole.
GlobalPlace global_place(const Parameter& parameter, const Mesh& mesh) {
  GlobalPlace global{parameter.value.sizes().vec(), matrix_of(parameter.value.sizes().vec())};
  if (parameter.split == Split::none) return global;
  const int64_t slices = mesh.shape().tensor / parameter.replicas, index = mesh.tensor_rank() / parameter.replicas;
  if (parameter.split == Split::rows) {
    global.shape[0] *= slices;
    global.place.row = index * global.place.rows;
  } else {
    global.shape[1] *= slices;
    global.place.column = index * global.place.columns;
  }
  return global;
}

// A state's three tensors at the same place.
void add_states(Regions& regions, const Region& place, const AdamW::State& state) {
  for (const auto& [ending, values] : {std::pair<const char*, at::Tensor>{"", state.value},
                                       {".first_moment", state.first_moment},
                                       {".second_moment", state.second_moment}}) {
    Region& region = regions.emplace_back(place);
    region.name += ending;
    region.values = values.detach().view({place.place.rows, place.place.columns});
  }
}

}  // namespace

Rectangle matrix_of(const std::vector<int64_t>& shape) {
  Rectangle whole{.rows = shape.empty() ? 1 : shape[0], .columns = 1};
  for (size_t dim = 1; dim < shape.size(); ++dim) whole.columns *= shape[dim];
  return whole;
}

Rectangle intersection(const Rectangle& a, const Rectangle& b) {
  const int64_t row = std::max(a.row, b.row), column = std::max(a.column, b.column);
  return {row, column, std::max<int64_t>(0, std::min(a.row + a.rows, b.row + b.rows) - row),
          std::max<int64_t>(0, std::min(a.column + a.columns, b.column + b.columns) - column)};
}

bool contains(const Rectangle& outer, const Rectangle& inner) { return intersection(outer, inner) == inner; }

at::Tensor part_of(const at::Tensor& values, const Rectangle& place, const Rectangle& part) {
  return values.narrow(0, part.row - place.row, part.rows).narrow(1, part.column - place.column, part.columns);
}

std::vector<Rectangle> rectangles_of(const Rectangle& whole, int64_t first, int64_t count) {
  std::vector<Rectangle> parts;
  while (count > 0) {
    const int64_t row = first / whole.columns, column = first % whole.columns;
    const bool fills_rows = column == 0 && count >= whole.columns;
    Rectangle part{whole.row + row, whole.column + column, 1, std::min(count, whole.columns - column)};
    if (fills_rows) part.rows = count / whole.columns;
    parts.push_back(part);
    first += part.area();
    count -= part.area();
  }
  return parts;
}

Regions regions_of(const Parameters& parameters, const DataShardedAdamW& optimizer, const Mesh& mesh,
                   bool shares_states) {
  Regions regions;
  for (const auto& [piece, state] : optimizer.states()) {
    const Parameter& parameter = parameters.at(piece.parameter);
    const auto [shape, whole] = global_place(parameter, mesh);
    const bool saves = counts_here(parameter, mesh) && (shares_states || mesh.data_rank() == 0);
    int64_t start = 0;
    for (const Rectangle& place : rectangles_of(whole, piece.first, piece.count)) {
      const auto part = [&, start = start](const at::Tensor& flat) { return flat.narrow(0, start, place.area()); };
      add_states(regions, {parameter.name, shape, place, {}, saves},
                 {part(state.value), part(state.first_moment), part(state.second_moment)});
      start += place.area();
    }
  }
  return regions;
}

Regions regions_of(const std::string& name, const AdamW::State& state, int64_t first, int64_t all, bool is_saved_here) {
  Regions regions;
  add_states(regions, {name, {all}, {first, 0, state.value.numel(), 1}, {}, is_saved_here}, state);
  return regions;
}

proto::TensorSlice slice_of(const Region& region) {
  proto::TensorSlice slice;
  slice.set_name(region.name);
  slice.mutable_shape()->Add(region.shape.begin(), region.shape.end());
  slice.set_row(region.place.row);
  slice.set_column(region.place.column);
  slice.set_rows(region.place.rows);
  slice.set_columns(region.place.columns);
  return slice;
}

Rectangle place_of(const proto::TensorSlice& slice) {
  return {slice.row(), slice.column(), slice.rows(), slice.columns()};
}

std::string key_of(const proto::TensorSlice& slice) {
  return slice.name() + "@" + std::to_string(slice.row()) + "," + std::to_string(slice.column());
}

}  // namespace flashmorph
