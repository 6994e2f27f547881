// How far attention looks back, against its definition by the full map of probabilities.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/model/attention.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

struct Layer {
  Layer() {
    test::write_small_model(folder.path());
    spec = ModelSpec::open(folder.path());
    weights = load_attention(ModelFiles::open(folder.path()), spec, 0, placement);
  }
  at::Tensor distance(const at::Tensor& x, const Positions& positions) const {
    return attention_distance(x, weights, spec, positions);
  }
  Positions positions(int64_t length, const std::optional<at::Tensor>& documents = std::nullopt) const {
    return positions_of(spec, 0, length, placement, documents);
  }
  Placement placement{.dtype = at::kDouble};
  test::TemporaryFolder folder;
  ModelSpec spec;
  AttentionWeights weights;
};

at::Tensor some_input(int64_t rows, int64_t tokens) {
  return at::randn({rows, tokens, 32}, at::detail::createCPUGenerator(1), at::kDouble);
}

TEST(AttentionDistance, IsTheMeanOverTheMapOfProbabilities) {
  const Layer layer;
  const at::Tensor x = some_input(2, 13);
  const auto [q, k, v] = queries_keys_values(x, layer.weights, layer.spec, layer.positions(13));
  const at::Tensor scores = at::einsum("bihk,bjhk->bhij", {q, k.repeat_interleave(2, 2)}) / std::sqrt(8.0);
  const at::Tensor visible = at::ones({13, 13}, at::kBool).tril();
  const at::Tensor map = scores.masked_fill(visible.logical_not(), -1e300).softmax(-1);
  const at::Tensor i = at::arange(13, at::kDouble), back = i.unsqueeze(1) - i;
  EXPECT_LT(
      test::relative_error((map * back).sum(-1).mean(at::IntArrayRef{0, 2}), layer.distance(x, layer.positions(13))),
      1e-12);
}

TEST(AttentionDistance, StaysInsideADocument) {
  const Layer layer;
  const at::Tensor x = some_input(1, 12);
  const at::Tensor packed = layer.distance(x, layer.positions(12, at::tensor(std::vector<int64_t>{0, 4, 12})));
  const at::Tensor apart = (layer.distance(x.narrow(1, 0, 4), layer.positions(4)) * 4 +
                            layer.distance(x.narrow(1, 4, 8), layer.positions(8)) * 8) /
                           12;
  EXPECT_LT(test::relative_error(apart, packed), 1e-12);
  EXPECT_EQ(layer.distance(x.narrow(1, 0, 1), layer.positions(1)).abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace flashmorph
