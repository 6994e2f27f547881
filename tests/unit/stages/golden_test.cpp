#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>

#include "core/io/model_files.h"
#include "core/mixer/lightning.h"
#include "distributed/stages/align.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/select.h"
#include "tests/support/tensors.h"

// Align and select against an independent eager PyTorch reference in float64 (tests/golden/make_stages.py).

namespace flashmorph {
namespace {

using test::relative_error;

constexpr const char* kModel = "tests/golden/families/qwen3";
constexpr double kTolerance = 1e-9;  // float64 on both sides

struct Golden {
  static constexpr const char* kFile = "tests/golden/stages.safetensors";
  std::shared_ptr<const SafetensorsFile> stored = SafetensorsFile::open(kFile);
  Batch batch = {tensor("tokens").to(at::kLong), tensor("answers").to(at::kBool), {}};

  at::Tensor tensor(const std::string& name) const { return stored->tensor(name); }
};

class StagesGolden : public testing::TestWithParam<const char*> {
 protected:
  StagesGolden() {
    MixerSection mixer;
    mixer.own.of<LightningSettings>().output_norm = GetParam();
    model_.add_branches(mixer, 1);
    read_into(model_.branch_parameters(), ModelFiles::open_file(Golden::kFile), model_.placement());
  }
  at::Tensor expected(const std::string& name) const { return golden_.tensor(std::string(GetParam()) + "." + name); }

  Golden golden_;
  Shard whole_;
  MorphableModel model_ =
      MorphableModel::load(ModelFiles::open(kModel), ModelSpec::open(kModel), {0, 1, at::kDouble, at::kCPU}, whole_);
};

TEST_P(StagesGolden, AlignsLossAndEveryBranchGradient) {
  const Parameters branches = model_.branch_parameters();
  for (const Parameter& branch : branches) branch.value.set_requires_grad(true);
  at::Tensor loss = at::zeros({}, at::kDouble);
  align_micro_batch(model_, golden_.batch, {}, 1, loss, [](const at::Tensor&) {});
  EXPECT_NEAR(loss.item<double>() / expected("align_losses").mean().item<double>(), 1.0, kTolerance);
  for (const Parameter& branch : branches)
    EXPECT_NEAR(
        branch.value.grad().norm().item<double>() / expected("align_gradient_norms." + branch.name).item<double>(), 1.0,
        kTolerance)
        << branch.name;
}

TEST_P(StagesGolden, SelectsErrorAndGateGradient) {
  const double answers = golden_.batch.answers_BT.sum().item<double>();
  for (int64_t row = 0; row < 2; ++row) {
    const at::Tensor alpha = golden_.tensor("alphas")[row].clone().set_requires_grad(true);
    ASSERT_EQ(alpha.size(0), model_.layer_count());
    const at::Tensor error = mix_beside_teacher(model_, golden_.batch, mixing_routes(alpha, alpha), {}).loss;
    error.backward();
    const double expected_error = expected("select_errors")[row].mean().item<double>();
    EXPECT_NEAR(error.item<double>() / answers / expected_error, 1.0, kTolerance) << row;
    EXPECT_LT(relative_error(expected("gate_gradients")[row], alpha.grad() / answers), kTolerance) << row;
  }
}

TEST_P(StagesGolden, AGatesGradientIsTheCentralDifferenceOfTheError) {
  constexpr double kStep = 1e-5;  // an error of its square, some 1e-10 of the gradient, and rounding of as much
  const auto error_at = [&](const at::Tensor& alpha) {
    return mix_beside_teacher(model_, golden_.batch, mixing_routes(alpha, alpha), {}, ErrorOf::attention).loss;
  };
  const at::Tensor inside = at::tensor({0.8, 0.35}, at::kDouble), alpha = inside.clone().set_requires_grad(true);
  error_at(alpha).backward();
  for (int64_t l = 0; l < inside.size(0); ++l) {
    at::Tensor above = inside.clone(), below = inside.clone();
    above[l] += kStep;
    below[l] -= kStep;
    const double difference = (error_at(above) - error_at(below)).item<double>() / (2.0 * kStep);
    EXPECT_NEAR(alpha.grad()[l].item<double>() / difference, 1.0, 1e-8) << l;
  }
}

INSTANTIATE_TEST_SUITE_P(OutputNorms, StagesGolden, testing::Values("head", "hidden"));

}  // namespace
}  // namespace flashmorph
