#include "distributed/stages/gates.h"

#include <ATen/ATen.h>

#include "distributed/stages/gate_descent.h"

namespace flashmorph {
namespace {

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.data_ptr<double>(), host.data_ptr<double>() + host.numel()};
}

}  // namespace

Gates::Gates(const MorphableModel& model, Mesh& mesh, double at)
    : model_(model), mesh_(mesh), alpha_l_(at::full({model.own_layers().count()}, at, at::kDouble)) {}

void Gates::clamp() { alpha_l_.clamp_(0.0, 1.0); }

at::Tensor Gates::leaf() const {
  return alpha_l_.detach().clone().to(model_.placement().device).set_requires_grad(true);
}

Routes Gates::mixing(const at::Tensor& leaf) const { return mixing_routes(leaf, alpha_l_); }

void Gates::set(const std::vector<double>& of_all_layers) {
  const auto [first, last] = model_.own_layers();
  alpha_l_.copy_(at::tensor(at::ArrayRef<double>(of_all_layers).slice(first, last - first), at::kDouble));
}

std::vector<double> Gates::of_all_layers(const at::Tensor& own_l) const {
  at::Tensor all = at::zeros({model_.layer_count()}, at::kDouble);
  all.narrow(0, model_.own_layers().first, model_.own_layers().count()).copy_(own_l);
  mesh_.pipeline().all_reduce(all, Reduction::sum);
  return numbers(all);
}

void Gates::record(const StepResult& step, const MovedGates& moved, double cost) {
  proto::GateStep& done = *history_.add_history();
  done.set_step(history_.history_size());
  done.set_loss(step.loss);
  done.set_regularizer(step.regularizer);
  done.mutable_alpha()->Add(moved.alpha.begin(), moved.alpha.end());
  done.set_price(moved.price);
  done.set_cost(cost);
}

Trained Gates::trained_by(GateDescent& descent) {
  const int64_t first = model_.own_layers().first;
  const bool is_first_replica = mesh_.data_rank() == 0 && mesh_.tensor_rank() == 0;
  return {.weights = {},
          .regions = regions_of("gates", descent.state(), first, model_.layer_count(), is_first_replica),
          .resume_at = [&descent](int64_t steps) { descent.resume_at(steps); },
          .named =
              [first](const std::vector<at::Tensor>& gradients) {
                NamedGradients all;
                for (int64_t l = 0; l < gradients[0].numel(); ++l)
                  all.emplace_back("the gate of layer " + std::to_string(first + l), gradients[0][l]);
                return all;
              },
          .own = &history_};
}

Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l) {
  const std::vector<at::Tensor> gates = alpha_l.unbind();
  const std::vector<double> values = numbers(on_host_l);
  Routes routes;
  for (size_t l = 0; l < gates.size(); ++l) routes.push_back(Route::mixed(gates[l], values[l]));
  return routes;
}

}  // namespace flashmorph
