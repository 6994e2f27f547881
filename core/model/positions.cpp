#include "core/model/positions.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

namespace flashmorph {
namespace {

// The position of each token in its own document.
at::Tensor restarting(const at::Tensor& documents, int64_t length) {
  TORCH_CHECK(documents[-1].item<int64_t>() == length, "packed documents of ", documents[-1].item<int64_t>(),
              " tokens in a row of ", length);
  const at::Tensor begin = documents.narrow(0, 0, documents.size(0) - 1);
  return at::arange(length) - begin.repeat_interleave(documents.diff());
}

}  // namespace

Positions positions_of(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement,
                       const std::optional<at::Tensor>& documents) {
  TORCH_CHECK(!documents || start == 0, "packed documents start at position 0");
  const auto exact = at::TensorOptions(at::kDouble).device(placement.device);
  const at::Tensor frequency = at::tensor(spec.rope.frequencies(spec.head_dim), exact);
  const at::Tensor place_T = documents ? restarting(*documents, length) : at::arange(start, start + length);
  const at::Tensor angle = place_T.to(exact).unsqueeze(1) * frequency;  // [T, K/2]
  const at::Tensor both = at::cat({angle, angle}, 1);
  const auto placed = at::toOpMathType(placement.dtype);
  Positions positions{(both.cos() * spec.rope.scale).to(placed),
                      (both.sin() * spec.rope.scale).to(placed),
                      documents,
                      {},
                      std::nullopt};
  if (documents) {
    positions.documents_on_device = documents->to(exact.dtype(at::kInt));
    positions.place_T = place_T.to(exact.dtype(at::kInt));
  }
  return positions;
}

}  // namespace flashmorph
