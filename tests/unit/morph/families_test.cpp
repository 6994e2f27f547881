// Every family split over two ranks is the model on one: hidden states, and the gradients of all weights.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "core/model/stored_model.h"
#include "core/morph/morphable_model.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/shard_pair.h"

namespace flashmorph {
namespace {

class TwoRanks : public testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path folder() const { return std::filesystem::path("tests/golden/families") / GetParam(); }

  // The teacher as a trainable hybrid of full layers only, in float64.
  MorphableModel load(const Placement& placement, Shard& shard) const {
    const auto [spec, files, notes] = StoredModel::open(folder());
    const MorphableModel model = MorphableModel::load(files, spec, placement, shard);
    return model.hybrid(Routes(static_cast<size_t>(spec.layers), Route::full()));
  }

  struct Pass {
    at::Tensor hidden;
    std::map<std::string, at::Tensor> gradients;
  };

  Pass pass(const MorphableModel& model) const {
    const at::Tensor tokens = (at::arange(2 * 23, at::kLong) * 37 % model.spec().vocabulary).view({2, 23});
    const Routes routes(static_cast<size_t>(model.layer_count()), Route::full());
    const at::Tensor hidden = model.forward(tokens, routes, model.positions(0, 23));
    const at::Tensor upstream = at::randn(hidden.sizes(), at::detail::createCPUGenerator(2), at::kDouble);
    (hidden * upstream).sum().backward();
    Pass result{hidden.detach(), {}};
    for (const Parameter& parameter : model.all_parameters())
      result.gradients[parameter.name] =
          parameter.value.grad().defined() ? parameter.value.grad() : at::zeros_like(parameter.value);
    return result;
  }
};

TEST_P(TwoRanks, EqualOne) {
  Shard whole;
  const MorphableModel one = load({.dtype = at::kDouble}, whole);
  const Pass expected = pass(one);

  std::array<Pass, 2> halves;
  test::ShardPair pair;
  pair.run([&](Shard& shard) {
    const int rank = shard.rank();
    halves[rank] = pass(load({.shard_rank = rank, .shard_size = 2, .dtype = at::kDouble}, shard));
  });

  for (const Pass& half : halves) EXPECT_LT(test::max_abs_error(expected.hidden, half.hidden), 1e-9);
  for (const Parameter& parameter : one.all_parameters()) {
    const at::Tensor low = halves[0].gradients.at(parameter.name), high = halves[1].gradients.at(parameter.name);
    at::Tensor joined = low;  // whole on each rank
    if (parameter.split != Split::none) joined = at::cat({low, high}, parameter.split == Split::rows ? 0 : 1);
    if (parameter.partial_gradient) joined = low + high;
    const at::Tensor whole_gradient = expected.gradients.at(parameter.name);
    if (parameter.name == "lm_head.weight") continue;                             // no part of the hidden states
    const bool may_idle = parameter.name.find(".experts.") != std::string::npos;  // no token chose it
    EXPECT_TRUE(may_idle || whole_gradient.abs().max().item<double>() > 0.0) << parameter.name;
    EXPECT_LT(test::relative_error(whole_gradient, joined), 1e-9) << parameter.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TwoRanks,
                         testing::Values("llama3", "llama-linear", "llama-bias", "mistral", "mixtral", "qwen2",
                                         "qwen2-yarn", "qwen3", "qwen3-moe", "qwen3-moe-plain", "smollm3", "granite",
                                         "phi3"));

}  // namespace
}  // namespace flashmorph
