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

at::Tensor Gates::leaf() const {
  return alpha_l_.detach().clone().to(model_.placement().device).set_requires_grad(true);
}

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

Trained Gates::trained_by(GateDescent& descent, proto::GateSnapshot& history) {
  const int64_t first = model_.own_layers().first;
  Parameters gates;
  for (int64_t l = 0; l < alpha_l_.numel(); ++l)
    gates.push_back({"the gate of layer " + std::to_string(first + l), alpha_l_[l]});
  const bool is_first_replica = mesh_.data_rank() == 0 && mesh_.tensor_rank() == 0;
  return {.parameters = std::move(gates),
          .regions = regions_of("gates", descent.state(), first, model_.layer_count(), is_first_replica),
          .resume_at = [&descent](int64_t steps) { descent.resume_at(steps); },
          .own = &history};
}

Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l) {
  const std::vector<at::Tensor> gates = alpha_l.unbind();
  const std::vector<double> values = numbers(on_host_l);
  Routes routes;
  for (size_t l = 0; l < gates.size(); ++l) routes.push_back(Route::mixed(gates[l], values[l]));
  return routes;
}

}  // namespace flashmorph
