#include "distributed/stages/gates.h"

#include <ATen/ATen.h>

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

std::vector<double> Gates::of_all_layers() const {
  at::Tensor all = at::zeros({model_.layer_count()}, at::kDouble);
  all.narrow(0, model_.own_layers().first, model_.own_layers().count()).copy_(alpha_l_);
  mesh_.pipeline().all_reduce(all, Reduction::sum);
  return numbers(all);
}

void Gates::record(int64_t step, double loss, const std::vector<double>& of_all_layers) {
  proto::GateStep& now = *moved_.add_history();
  now.set_step(step);
  now.set_loss(loss);
  now.mutable_alpha()->Add(of_all_layers.begin(), of_all_layers.end());
}

Trained Gates::trained_by(AdamW& optimizer) {
  const int64_t first = model_.own_layers().first;
  const bool is_first_replica = mesh_.data_rank() == 0 && mesh_.tensor_rank() == 0;
  return {.weights = {},
          .regions = regions_of("gates", optimizer.states()[0], first, model_.layer_count(), is_first_replica),
          .resume_at = [&optimizer](int64_t steps) { optimizer.resume_at(steps); },
          .named =
              [first](const std::vector<at::Tensor>& gradients) {
                NamedGradients all;
                for (int64_t l = 0; l < gradients[0].numel(); ++l)
                  all.emplace_back("the gate of layer " + std::to_string(first + l), gradients[0][l]);
                return all;
              },
          .own = &moved_};
}

proto::GateSnapshot Gates::snapshot() const {
  proto::GateSnapshot snapshot = moved_;
  if (!moved_.history().empty()) *snapshot.mutable_alpha() = moved_.history().rbegin()->alpha();
  return snapshot;
}

Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l) {
  const std::vector<at::Tensor> gates = alpha_l.unbind();
  const std::vector<double> values = numbers(on_host_l);
  Routes routes;
  for (size_t l = 0; l < gates.size(); ++l) routes.push_back(Route::mixed(gates[l], values[l]));
  return routes;
}

}  // namespace flashmorph
