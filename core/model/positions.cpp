#include "core/model/positions.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <algorithm>

namespace flashmorph {
namespace {

// The position of each token in its own document.
at::Tensor restarting(const at::Tensor& documents, int64_t length) {
  TORCH_CHECK(documents[-1].item<int64_t>() == length, "packed documents of ", documents[-1].item<int64_t>(),
              " tokens in a row of ", length);
  const at::Tensor begin = documents.narrow(0, 0, documents.size(0) - 1);
  return at::arange(length) - begin.repeat_interleave(documents.diff());
}

Positions at_places(const ModelSpec& spec, const at::Tensor& place_T, const Placement& placement) {
  const auto exact = at::TensorOptions(at::kDouble).device(placement.device);
  const at::Tensor frequency = at::tensor(spec.rope.frequencies(spec.head_dim), exact);
  const at::Tensor angle = place_T.to(exact).unsqueeze(1) * frequency;  // [T, K/2]
  const at::Tensor both = at::cat({angle, angle}, 1);
  const auto placed = at::toOpMathType(placement.dtype);
  return {.cos_TK = (both.cos() * spec.rope.scale).to(placed), .sin_TK = (both.sin() * spec.rope.scale).to(placed)};
}

}  // namespace

Positions positions_of(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement,
                       const std::optional<at::Tensor>& documents) {
  TORCH_CHECK(!documents || start == 0, "packed documents start at position 0");
  const at::Tensor place_T = documents ? restarting(*documents, length) : at::arange(start, start + length);
  Positions positions = at_places(spec, place_T, placement);
  positions.start = start;
  positions.documents = documents;
  if (documents) {
    const auto on_device = at::TensorOptions(at::kInt).device(placement.device);
    positions.documents_on_device = documents->to(on_device);
    positions.place_T = place_T.to(on_device);
  }
  return positions;
}

Positions positions_of_rows(const ModelSpec& spec, const std::vector<int64_t>& starts, const Placement& placement) {
  const at::Tensor start_B = at::tensor(starts, at::kLong);
  Positions positions = at_places(spec, start_B, placement);
  positions.start = *std::ranges::max_element(starts);
  positions.rows = {.row_B = at::arange(start_B.size(0)).to(placement.device),
                    .start_B = start_B.to(placement.device),
                    .visible_B = (start_B + 1).to(at::TensorOptions(at::kInt).device(placement.device))};
  return positions;
}

}  // namespace flashmorph
