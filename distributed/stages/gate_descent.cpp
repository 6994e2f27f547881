#include <ATen/ATen.h>

#include <cmath>

#include "core/select/by_gates.h"
#include "distributed/stages/gates.h"

namespace flashmorph {
namespace {

class Penalized : public GateDescent {
 public:
  Penalized(Gates& gates, const SelectSection& section)
      : gates_(gates),
        lambda_(section.own.of<GateSettings>().gate_penalty),
        optimizer_({gates.alpha()}, {.beta1 = section.beta1, .beta2 = section.beta2}) {}

  PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t) override {
    optimizer_.step({gradient_l}, learning_rate);
    gates_.alpha().clamp_(0.0, 1.0);
    return {gates_.of_all_layers(gates_.alpha()), lambda_};
  }

  AdamW::State state() const override { return optimizer_.states()[0]; }
  void resume_at(int64_t steps) override { optimizer_.resume_at(steps); }

 private:
  Gates& gates_;
  double lambda_;
  AdamW optimizer_;
};

class UnderBudget : public GateDescent {
 public:
  UnderBudget(Gates& gates, const LayerBudget& budget, const SelectSection& section)
      : gates_(gates),
        costs_(relative_costs(budget)),
        section_(section),
        mean_l_(at::zeros_like(gates.alpha())),
        square_l_(at::zeros_like(gates.alpha())) {}

  PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t steps_done) override {
    const auto done = static_cast<double>(steps_done + 1);
    const double beta1 = section_.beta1, beta2 = section_.beta2;
    mean_l_.mul_(beta1).add_(gradient_l, 1.0 - beta1);
    square_l_.mul_(beta2).addcmul_(gradient_l, gradient_l, 1.0 - beta2);
    double square = 0.0;
    for (const double one : gates_.of_all_layers(square_l_ / (1.0 - std::pow(beta2, done)))) square += one;
    const double scale = std::sqrt(square / static_cast<double>(costs_.size()));
    const double rate = scale > 0.0 ? learning_rate / scale : 0.0;  // at the teacher itself the error is flat
    const at::Tensor downhill_l = gates_.alpha() - rate / (1.0 - std::pow(beta1, done)) * mean_l_;
    const PricedGates moved = nearest_within(gates_.of_all_layers(downhill_l), costs_,
                                             falling_allowance(costs_, steps_done + 1, section_.steps()));
    gates_.set(moved.gates);
    return {moved.gates, rate > 0.0 ? moved.price / rate : 0.0};
  }

  AdamW::State state() const override { return {gates_.alpha(), mean_l_, square_l_}; }
  void resume_at(int64_t) override {}

 private:
  Gates& gates_;
  std::vector<double> costs_;
  const SelectSection& section_;
  at::Tensor mean_l_, square_l_;  // of this rank's gradients
};

}  // namespace

std::unique_ptr<GateDescent> gate_descent(Gates& gates, const LayerBudget& budget, const SelectSection& section) {
  if (section.own.of<GateSettings>().has_penalty()) return std::make_unique<Penalized>(gates, section);
  return std::make_unique<UnderBudget>(gates, budget, section);
}

int gathers_a_step(const SelectSection& section) { return section.own.of<GateSettings>().has_penalty() ? 1 : 2; }

}  // namespace flashmorph
