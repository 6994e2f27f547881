#include "distributed/stages/gates.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/select/by_gates.h"

namespace flashmorph {
namespace {

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.data_ptr<double>(), host.data_ptr<double>() + host.numel()};
}

class PenalizedGates : public Gates {
 public:
  PenalizedGates(const MorphableModel& model, Mesh& mesh, const SelectSection& section)
      : Gates(model, mesh),
        lambda_(section.own.of<GateSettings>().gate_penalty),
        optimizer_({alpha_l_}, {.beta1 = section.beta1, .beta2 = section.beta2}) {
    depends_on(optimizer_.states()[0]);
  }

  PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t) override {
    optimizer_.step({gradient_l}, learning_rate);
    alpha_l_.clamp_(0.0, 1.0);
    return {of_all_layers(alpha_l_, model_, mesh_), lambda_};
  }

  void resume_at(int64_t steps) override { optimizer_.resume_at(steps); }

 private:
  double lambda_;
  AdamW optimizer_;
};

class GatesUnderBudget : public Gates {
 public:
  GatesUnderBudget(const MorphableModel& model, Mesh& mesh, const LayerBudget& budget, const SelectSection& section)
      : Gates(model, mesh),
        costs_(relative_costs(budget)),
        section_(section),
        mean_l_(at::zeros_like(alpha_l_)),
        square_l_(at::zeros_like(alpha_l_)) {
    depends_on({alpha_l_, mean_l_, square_l_});
  }

  PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t steps_done) override {
    const auto done = static_cast<double>(steps_done + 1);
    const double beta1 = section_.beta1, beta2 = section_.beta2;
    mean_l_.mul_(beta1).add_(gradient_l, 1.0 - beta1);
    square_l_.mul_(beta2).addcmul_(gradient_l, gradient_l, 1.0 - beta2);
    double square = 0.0;
    for (const double one : of_all_layers(square_l_ / (1.0 - std::pow(beta2, done)), model_, mesh_)) square += one;
    const double scale = std::sqrt(square / static_cast<double>(costs_.size()));
    const double rate = scale > 0.0 ? learning_rate / scale : 0.0;  // at the teacher itself the error is flat
    const at::Tensor downhill_l = alpha_l_ - rate / (1.0 - std::pow(beta1, done)) * mean_l_;
    PricedGates moved = nearest_within(of_all_layers(downhill_l, model_, mesh_), costs_,
                                       falling_allowance(costs_, steps_done + 1, section_.steps()));
    const auto [first, last] = model_.own_layers();
    alpha_l_.copy_(at::tensor(at::ArrayRef<double>(moved.gates).slice(first, last - first), at::kDouble));
    moved.price = rate > 0.0 ? moved.price / rate : 0.0;  // of the error, no longer of gates
    return moved;
  }

 private:
  std::vector<double> costs_;
  const SelectSection& section_;
  at::Tensor mean_l_, square_l_;  // of this rank's gradients
};

}  // namespace

Gates::Gates(const MorphableModel& model, Mesh& mesh)
    : model_(model), mesh_(mesh), alpha_l_(at::ones({model.own_layers().count()}, at::kDouble)) {
  for (int64_t l = 0; l < alpha_l_.numel(); ++l)
    parameters.push_back({"the gate of layer " + std::to_string(model.own_layers().first + l), alpha_l_[l]});
}

void Gates::depends_on(const AdamW::State& state) {
  const bool is_first_replica = mesh_.data_rank() == 0 && mesh_.tensor_rank() == 0;
  regions = regions_of("gates", state, model_.own_layers().first, model_.layer_count(), is_first_replica);
}

std::unique_ptr<Gates> open_gates(const MorphableModel& model, Mesh& mesh, const LayerBudget& budget,
                                  const SelectSection& section) {
  if (section.own.of<GateSettings>().has_penalty()) return std::make_unique<PenalizedGates>(model, mesh, section);
  return std::make_unique<GatesUnderBudget>(model, mesh, budget, section);
}

std::vector<double> of_all_layers(const at::Tensor& own_l, const MorphableModel& model, Mesh& mesh) {
  at::Tensor all = at::zeros({model.layer_count()}, at::kDouble);
  all.narrow(0, model.own_layers().first, model.own_layers().count()).copy_(own_l);
  mesh.pipeline().all_reduce(all, Reduction::sum);
  return numbers(all);
}

int gathers_a_step(const SelectSection& section) { return section.own.of<GateSettings>().has_penalty() ? 1 : 2; }

Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l) {
  const std::vector<at::Tensor> gates = alpha_l.unbind();
  const std::vector<double> values = numbers(on_host_l);
  Routes routes;
  for (size_t l = 0; l < gates.size(); ++l) routes.push_back(Route::mixed(gates[l], values[l]));
  return routes;
}

}  // namespace flashmorph
