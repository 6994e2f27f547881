#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace flashmorph::test {

constexpr int64_t kLayer = 1;
constexpr int64_t kSeed = 7;

inline at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

inline Shard& alone() {
  static Shard shard;
  return shard;
}

// A small model of 4 query heads and 2 kv heads of 8 channels, in float64, and branches started from its second layer.
struct SmallTeacher {
  explicit SmallTeacher(const SmallModel& model = {}) {
    write_small_model(folder.path(), model);
    spec = ModelSpec::open(folder.path());
  }
  AttentionWeights attention(const Placement& placement = {.dtype = at::kDouble}) const {
    return load_attention(ModelFiles::open(folder.path()), spec, kLayer, placement);
  }
  std::unique_ptr<LinearBranch> branch(const MixerSection& mixer, Shard& shard = alone(), int64_t seed = kSeed) const {
    const Placement placement{shard.rank(), shard.size(), at::kDouble, at::kCPU};
    return make_branch({spec, mixer, kLayer, seed, placement, shard}, attention(placement));
  }
  Positions positions(int64_t start, int64_t length, const std::optional<at::Tensor>& documents = std::nullopt) const {
    return positions_of(spec, start, length, {.dtype = at::kDouble}, documents);
  }

  TemporaryFolder folder;
  ModelSpec spec;
};

using Weights = std::map<std::string, at::Tensor>;  // q_proj, ..., q_proj.bias, A_log, ...

inline Weights weights_of(const LinearBranch& branch, int64_t layer = kLayer) {
  Weights weights;
  for (const Parameter& parameter : branch.parameters()) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".linear_attn.", suffix = ".weight";
    EXPECT_EQ(parameter.name.substr(0, prefix.size()), prefix);
    std::string name = parameter.name.substr(prefix.size());
    if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
    weights[name] = parameter.value;
  }
  return weights;
}

// Norm weights start at one, taps at a delta and sinks at zero, where a forgotten factor would not show.
inline void perturb_norms(const LinearBranch& branch) {
  for (const auto& [name, value] : weights_of(branch))
    if (name.find("norm") != std::string::npos || name.find("conv") != std::string::npos || name == "sinks")
      value.add_(0.3 * seeded(value.sizes(), value.numel() + name[0]));
}

inline void train_all(const LinearBranch& branch) {
  for (const Parameter& parameter : branch.parameters()) parameter.value.set_requires_grad(true);
}

// A branch does on two sequences what define(x_TD, weights) does on each, forward and in every gradient, to float64's
// rounding.
template <class Define>
void expect_as_defined(const SmallTeacher& teacher, const MixerSection& mixer, const Define& define) {
  const auto fast = teacher.branch(mixer);
  perturb_norms(*fast);
  const auto exact = fast->clone();
  train_all(*fast);
  train_all(*exact);
  const at::Tensor input = seeded({2, 11, 32}, 1), upstream = seeded({2, 11, 32}, 2);  // two chunks and a ragged one
  const at::Tensor x = input.clone().set_requires_grad(true), x_exact = input.clone().set_requires_grad(true);

  const at::Tensor actual = fast->forward(x, teacher.positions(0, 11));
  const Weights weights = weights_of(*exact);
  const at::Tensor expected = at::stack({define(x_exact[0], weights), define(x_exact[1], weights)});
  EXPECT_LT(relative_error(expected, actual), 1e-12);

  actual.backward(upstream);
  expected.backward(upstream);
  EXPECT_LT(relative_error(x_exact.grad(), x.grad()), 1e-11);
  for (const auto& [name, value] : weights_of(*fast))
    EXPECT_LT(relative_error(weights.at(name).grad(), value.grad()), 1e-11) << "gradient of " << name;
}

}  // namespace flashmorph::test
