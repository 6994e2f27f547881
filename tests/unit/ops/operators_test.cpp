// Every operator of torch.ops.flashmorph as a caller from Python reaches it: by name, through the dispatcher. Its
// gradients are those of central differences in float64.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <set>

#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::relative_error;

constexpr double kStep = 1e-5;

struct Case {
  std::vector<c10::IValue> arguments;
  std::vector<size_t> trained;  // places of the arguments that have a gradient
  size_t outputs = 1;           // results that have one
};

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

at::Tensor decay(at::IntArrayRef sizes, uint64_t seed) { return -seeded(sizes, seed).abs(); }

Case recurrence(std::vector<at::Tensor> gates, bool gates_trained) {
  const at::Tensor documents = at::tensor(std::vector<int64_t>{0, 2, 7});
  Case made{{seeded({1, 7, 2, 3}, 1), seeded({1, 7, 2, 3}, 2) / 3, seeded({1, 7, 2, 4}, 3)}, {0, 1, 2}, 2};
  for (const at::Tensor& gate : gates) {
    if (gates_trained) made.trained.push_back(made.arguments.size());
    made.arguments.push_back(gate);
  }
  made.trained.push_back(made.arguments.size());
  for (const c10::IValue& rest :
       {c10::IValue(seeded({2, 2, 3, 4}, 4)), c10::IValue(documents), c10::IValue(0.7), c10::IValue(int64_t{4})})
    made.arguments.push_back(rest);
  return made;
}

const std::map<std::string, Case>& cases() {
  const c10::IValue none;
  static const std::map<std::string, Case> all = {
      {"project", {{seeded({2, 3, 5}, 1), seeded({4, 5}, 2), seeded({4}, 3)}, {0, 1, 2}}},
      {"project_by_frozen", {{seeded({2, 3, 5}, 1), seeded({4, 5}, 2), seeded({4}, 3)}, {0}}},
      {"rms_norm", {{seeded({2, 3, 5}, 1), seeded({5}, 2), 1e-2}, {0, 1}}},
      {"add_and_norm", {{seeded({2, 3, 5}, 1), seeded({2, 3, 5}, 2), seeded({5}, 3), 1e-2}, {0, 1, 2}, 2}},
      {"gated_rms_norm", {{seeded({2, 3, 2, 4}, 1), seeded({8}, 2), seeded({2, 3, 8}, 3), 1e-2, true}, {0, 1, 2}}},
      {"swiglu", {{seeded({3, 5}, 1), seeded({3, 5}, 2)}, {0, 1}}},
      {"rotate", {{seeded({2, 3, 2, 4}, 1), seeded({3, 4}, 2), seeded({3, 4}, 3)}, {0}}},
      {"norm_and_rotate",
       {{seeded({2, 3, 2, 4}, 1), seeded({4}, 4), seeded({3, 4}, 2), seeded({3, 4}, 3), 1e-2}, {0, 1}}},
      {"short_convolution",
       {{seeded({1, 7, 3}, 1), seeded({3, 4}, 2), none, at::tensor(std::vector<int64_t>{0, 1, 0, 1, 2, 3, 4}), true},
        {0, 1}}},
      {"squared_distance", {{seeded({3, 5}, 1), seeded({3, 5}, 2)}, {0}}},
      {"softmax_attention",
       {{seeded({1, 7, 4, 3}, 1), seeded({1, 7, 2, 3}, 2), seeded({1, 7, 2, 3}, 3),
         at::tensor(std::vector<int64_t>{0, 2, 7}), at::tensor(std::vector<int>{0, 2, 7}, at::kInt)},
        {0, 1, 2}}},
      {"gate_mix", {{seeded({3, 5}, 1), seeded({3, 5}, 2), at::scalar_tensor(0.3, at::kDouble), 0.3}, {0, 1}}},
      {"lightning_attention", recurrence({decay({2}, 5)}, false)},
      {"scalar_gated_attention", recurrence({decay({1, 7, 2}, 5)}, true)},
      {"gated_linear_attention", recurrence({decay({1, 7, 2, 3}, 5)}, true)},
      {"gated_delta_rule", recurrence({decay({1, 7, 2}, 5), at::sigmoid(seeded({1, 7, 2}, 6))}, true)}};
  return all;
}

std::vector<at::Tensor> called(const std::string& name, const std::vector<c10::IValue>& arguments) {
  std::vector<c10::IValue> stack = arguments;
  c10::Dispatcher::singleton().findSchemaOrThrow(("flashmorph::" + name).c_str(), "").callBoxed(&stack);
  std::vector<at::Tensor> results;
  for (const c10::IValue& value : stack) results.push_back(value.toTensor());
  return results;
}

// What the gradients are of: the first results, each weighted with something of its own.
at::Tensor weighted_sum(const std::vector<at::Tensor>& results, size_t outputs) {
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (size_t i = 0; i < outputs; ++i) sum = sum + (results[i] * seeded(results[i].sizes(), 90 + i)).sum();
  return sum;
}

at::Tensor by_central_differences(const std::string& name, const Case& c, size_t place) {
  const at::Tensor x = c.arguments[place].toTensor();
  at::Tensor gradient = at::empty_like(x, at::MemoryFormat::Contiguous);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const auto moved = [&](double step) {
      std::vector<c10::IValue> arguments = c.arguments;
      const at::Tensor there = x.clone(at::MemoryFormat::Contiguous);
      there.view(-1)[i] += step;
      arguments[place] = there;
      return weighted_sum(called(name, arguments), c.outputs).item<double>();
    };
    gradient.data_ptr<double>()[i] = (moved(kStep) - moved(-kStep)) / (2 * kStep);
  }
  return gradient;
}

class Operators : public testing::TestWithParam<std::string> {};

TEST_P(Operators, HaveTheGradientsOfCentralDifferences) {
  const std::string name = GetParam();
  const Case& c = cases().at(name);
  std::vector<c10::IValue> arguments = c.arguments;
  std::vector<at::Tensor> trained;
  for (const size_t place : c.trained) {
    trained.push_back(arguments[place].toTensor().clone().set_requires_grad(true));
    arguments[place] = trained.back();
  }
  const auto gradients =
      torch::autograd::grad({weighted_sum(called(name, arguments), c.outputs)}, trained, {}, {}, false, true);
  for (size_t i = 0; i < trained.size(); ++i) {
    ASSERT_TRUE(gradients[i].defined()) << "argument " << c.trained[i] << " has no gradient";
    EXPECT_LT(relative_error(by_central_differences(name, c, c.trained[i]), gradients[i]), 1e-8)
        << "argument " << c.trained[i];
  }
}

class Recurrences : public testing::TestWithParam<std::string> {};

// A loss of the final state, or of the output, alone: the other one has no gradient then.
TEST_P(Recurrences, KnowTheGradientOfEachResultAlone) {
  const at::Tensor v = cases().at(GetParam()).arguments[2].toTensor().clone().set_requires_grad(true);
  std::vector<c10::IValue> arguments = cases().at(GetParam()).arguments;
  arguments[2] = v;
  const std::vector<at::Tensor> results = called(GetParam(), arguments);
  const auto gradient = [&](const at::Tensor& loss) { return torch::autograd::grad({loss}, {v}, {}, true)[0]; };
  const at::Tensor of_output = results[0].square().sum(), of_state = results[1].square().sum();
  EXPECT_LT(relative_error(gradient(of_output + of_state), gradient(of_output) + gradient(of_state)), 1e-14);
}

INSTANTIATE_TEST_SUITE_P(All, Recurrences,
                         testing::Values("lightning_attention", "scalar_gated_attention", "gated_linear_attention",
                                         "gated_delta_rule"),
                         [](const auto& info) { return info.param; });

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, c] : cases()) all.push_back(name);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, Operators, testing::ValuesIn(names()), [](const auto& info) { return info.param; });

// The gate is the third argument, whose number stands beside it: both move.
TEST(OperatorsGate, HasTheGradientOfCentralDifferences) {
  const at::Tensor full = seeded({3, 5}, 1), linear = seeded({3, 5}, 2);
  const auto mixed = [&](double a) {
    return called("gate_mix", {full, linear, at::scalar_tensor(a, at::kDouble), a}).front();
  };
  const at::Tensor alpha = at::scalar_tensor(0.3, at::kDouble).set_requires_grad(true), G = seeded({3, 5}, 3);
  (called("gate_mix", {full, linear, alpha, 0.3}).front() * G).sum().backward();
  const double expected = ((mixed(0.3 + kStep) - mixed(0.3 - kStep)) * G).sum().item<double>() / (2 * kStep);
  EXPECT_NEAR(alpha.grad().item<double>(), expected, 1e-8);
}

// Parts of the loss over the vocabulary, which gives their gradient itself (vocabulary_loss_test.cpp).
const std::set<std::string> kPartsOfTheLoss = {"softmax_sums", "softmax_gradient"};
// What rounds is flat between its steps (projection_test.cpp).
const std::set<std::string> kInFloat8 = {"quantise_rows", "project_in_float8"};

TEST(OperatorsAll, AreTried) {
  std::set<std::string> declared, tried = kPartsOfTheLoss;
  tried.insert(kInFloat8.begin(), kInFloat8.end());
  for (const c10::OperatorName& op : c10::Dispatcher::singleton().getAllOpNames())
    if (const std::string name = op.name; name.starts_with("flashmorph::") && !name.ends_with("_backward"))
      declared.insert(name.substr(std::string("flashmorph::").size()));
  for (const std::string& name : names()) tried.insert(name);
  EXPECT_EQ(declared, tried);
}

}  // namespace
}  // namespace flashmorph
