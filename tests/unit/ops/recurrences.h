#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/ops/linear_attention.h"
#include "tests/reference/linear_attention.h"
#include "tests/support/tensors.h"

namespace flashmorph::test {

// The linear-attention operators behind one face. Letters: B batch, T tokens, H heads, K key dim, V value dim.
constexpr double kScale = 0.35;
constexpr int64_t kHeads = 3;

using Results = std::pair<at::Tensor, at::Tensor>;
using Documents = std::optional<at::Tensor>;

// A call's tensors by name: q, k, v, g, beta (of the delta rule), state. g is [H] in lightning and has no gradient
// there.
struct Inputs {
  std::map<std::string, at::Tensor> tensors;

  const at::Tensor& operator[](const std::string& name) const { return tensors.at(name); }
  at::ScalarType dtype() const { return tensors.at("q").scalar_type(); }
  bool is_trained(const std::string& name) const { return name != "g" || tensors.at("g").dim() > 1; }

  // Fresh leaves of another dtype. Lightning's decay stays exact.
  Inputs to(at::ScalarType type) const {
    Inputs copy;
    for (const auto& [name, tensor] : tensors)
      copy.tensors[name] =
          is_trained(name) ? tensor.detach().to(type).clone().set_requires_grad(true) : tensor.detach().clone();
    return copy;
  }
  Inputs copy() const { return to(dtype()); }

  Inputs with(const std::string& name, const at::Tensor& value) const {
    Inputs changed = *this;
    changed.tensors[name] = value;
    return changed.copy();
  }

  // The same graph, seen through a function of the tensors over tokens (not the state, not lightning's decay).
  Inputs over_tokens(const std::function<at::Tensor(const at::Tensor&)>& view) const {
    Inputs part = *this;
    for (auto& [name, tensor] : part.tensors)
      if (name != "state" && is_trained(name)) tensor = view(tensor);
    return part;
  }
  Inputs tokens(int64_t first, int64_t count) const {
    return over_tokens([&](const at::Tensor& x) { return x.narrow(1, first, count); });
  }
  Inputs without_state() const {
    Inputs part = *this;
    part.tensors["state"] = at::Tensor();
    return part;
  }

  std::map<std::string, at::Tensor> gradients() const {
    std::map<std::string, at::Tensor> found;
    for (const auto& [name, tensor] : tensors)
      if (is_trained(name)) found[name] = tensor.grad().defined() ? tensor.grad() : at::zeros_like(tensor);
    return found;
  }
};

struct Operator {
  std::string name;
  double float_tolerance;
  std::function<Results(const Inputs&, const Documents&, int64_t chunk)> run;
  std::function<Outcome(const Inputs&)> define;

  friend void PrintTo(const Operator& op, std::ostream* out) { *out << op.name; }
};

inline std::optional<at::Tensor> state_of(const Inputs& in) {
  return in["state"].defined() ? std::optional(in["state"]) : std::nullopt;
}

inline Operator lightning() {
  return {
      "lightning", 1e-5,
      [](const Inputs& in, const Documents& documents, int64_t chunk) {
        return lightning_attention(in["q"], in["k"], in["v"], in["g"], state_of(in), documents, kScale, chunk);
      },
      [](const Inputs& in) { return lightning_definition(in["q"], in["k"], in["v"], in["g"], in["state"], kScale); }};
}

inline Operator scalar_gated() {
  return {"scalar_gated", 1e-5,
          [](const Inputs& in, const Documents& documents, int64_t chunk) {
            return scalar_gated_attention(in["q"], in["k"], in["v"], in["g"], state_of(in), documents, kScale, chunk);
          },
          [](const Inputs& in) {
            return scalar_gated_definition(in["q"], in["k"], in["v"], in["g"], in["state"], kScale);
          }};
}

inline Operator gated_linear() {
  return {"gated_linear", 1e-5,
          [](const Inputs& in, const Documents& documents, int64_t chunk) {
            return gated_linear_attention(in["q"], in["k"], in["v"], in["g"], state_of(in), documents, kScale, chunk);
          },
          [](const Inputs& in) {
            return gated_linear_definition(in["q"], in["k"], in["v"], in["g"], in["state"], kScale);
          }};
}

inline Operator gated_delta() {
  return {"gated_delta", 1e-4,
          [](const Inputs& in, const Documents& documents, int64_t chunk) {
            return gated_delta_rule(in["q"], in["k"], in["v"], in["g"], in["beta"], state_of(in), documents, kScale,
                                    chunk);
          },
          [](const Inputs& in) {
            return gated_delta_definition(in["q"], in["k"], in["v"], in["g"], in["beta"], in["state"], kScale);
          }};
}

// Random inputs in float64; decays around `mean_decay` per token, keys of length 1 for the delta rule.
inline Inputs random_inputs(const Operator& op, int64_t T, int64_t K = 8, int64_t V = 4, int64_t B = 2,
                            double mean_decay = 0.1) {
  const at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(T * 100 + K));
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, generator, at::kDouble); };
  const auto uniform = [&](at::IntArrayRef sizes) { return at::rand(sizes, generator, at::kDouble); };
  Inputs in;
  in.tensors = {{"q", normal({B, T, kHeads, K})},
                {"k", normal({B, T, kHeads, K})},
                {"v", normal({B, T, kHeads, V})},
                {"state", normal({B, kHeads, K, V})}};
  if (op.name == "lightning") in.tensors["g"] = at::tensor({-0.7, -0.05, -0.002}, at::kDouble);
  if (op.name == "scalar_gated") in.tensors["g"] = uniform({B, T, kHeads}) * (-2.0 * mean_decay);
  if (op.name == "gated_linear") in.tensors["g"] = uniform({B, T, kHeads, K}) * (-2.0 * mean_decay);
  if (op.name == "gated_delta") {
    in.tensors["g"] = uniform({B, T, kHeads}) * (-2.0 * mean_decay);
    in.tensors["beta"] = uniform({B, T, kHeads});
    in.tensors["k"] = in["k"] / in["k"].norm(2, {-1}, /*keepdim=*/true);
  }
  return in.copy();
}

// Backward through both outputs with upstream gradients that depend only on the shapes.
inline void backward(const Results& results) {
  const at::Generator generator = at::detail::createCPUGenerator(7);
  const auto upstream = [&](const at::Tensor& x) {
    return at::randn(x.sizes(), generator, at::kDouble).to(x.scalar_type());
  };
  const at::Tensor d_output = upstream(results.first), d_state = upstream(results.second);
  ((results.first * d_output).sum() + (results.second * d_state).sum()).backward();
}

// Outputs, states and every gradient; runs both backward passes.
inline void expect_equal_with_gradients(const Inputs& exact, const Results& expected, const Inputs& in,
                                        const Results& actual, double tolerance) {
  EXPECT_LT(relative_error(expected.first, actual.first), tolerance) << "output";
  EXPECT_LT(relative_error(expected.second, actual.second), tolerance) << "final state";
  backward(expected);
  backward(actual);
  const auto found = in.gradients();
  for (const auto& [name, gradient] : exact.gradients())
    EXPECT_LT(relative_error(gradient, found.at(name)), tolerance) << "gradient of " << name;
}

}  // namespace flashmorph::test
