#include "core/model/positions.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <algorithm>

#include "core/ops/copied_to.h"

namespace flashmorph {
namespace {

// The position of each token in its own document.
at::Tensor restarting(const at::Tensor& documents_S1, int64_t length) {
  const at::Tensor begin = documents_S1.narrow(0, 0, documents_S1.size(0) - 1);
  return at::arange(length, documents_S1.options()) - begin.repeat_interleave(documents_S1.diff(), 0, length);
}

// place_T: on the placement's device.
Positions at_places(const ModelSpec& spec, const at::Tensor& place_T, const Placement& placement) {
  const at::Tensor frequency =
      copied_to(placement.device, at::tensor(spec.rope.frequencies(spec.head_dim), at::kDouble));
  const at::Tensor angle = place_T.to(at::kDouble).unsqueeze(1) * frequency;  // [T, K/2]
  const at::Tensor both = at::cat({angle, angle}, 1);
  const auto placed = at::toOpMathType(placement.dtype);
  return {.cos_TK = (both.cos() * spec.rope.scale).to(placed), .sin_TK = (both.sin() * spec.rope.scale).to(placed)};
}

}  // namespace

Positions positions_of(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement,
                       const std::optional<at::Tensor>& documents) {
  TORCH_CHECK(!documents || start == 0, "packed documents start at position 0");
  if (!documents) {
    const at::Tensor place_T = at::arange(start, start + length, at::TensorOptions(at::kLong).device(placement.device));
    Positions positions = at_places(spec, place_T, placement);
    positions.start = start;
    return positions;
  }
  TORCH_CHECK((*documents)[-1].item<int64_t>() == length, "packed documents of ", (*documents)[-1].item<int64_t>(),
              " tokens in a row of ", length);
  const at::Tensor documents_S1 = copied_to(placement.device, *documents), place_T = restarting(documents_S1, length);
  Positions positions = at_places(spec, place_T, placement);
  positions.documents = documents;
  positions.documents_on_device = documents_S1.to(at::kInt);
  positions.place_T = place_T.to(at::kInt);
  return positions;
}

Positions positions_of_rows(const ModelSpec& spec, const std::vector<int64_t>& starts, const Placement& placement) {
  const at::Tensor start_B = copied_to(placement.device, at::tensor(starts, at::kLong));
  Positions positions = at_places(spec, start_B, placement);
  positions.start = *std::ranges::max_element(starts);
  positions.rows = {.row_B = at::arange(start_B.size(0), start_B.options()),
                    .start_B = start_B,
                    .visible_B = (start_B + 1).to(at::kInt)};
  return positions;
}

}  // namespace flashmorph
