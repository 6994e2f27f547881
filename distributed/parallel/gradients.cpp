#include "distributed/parallel/gradients.h"

#include <ATen/ATen.h>

#include <cmath>

namespace flashmorph {
namespace {

// One all-reduce for many tensors, in place.
void all_reduce_flat(std::vector<at::Tensor>& tensors, Communicator& group) {
  if (tensors.empty() || group.size() == 1) return;
  std::vector<at::Tensor> flat;
  for (const at::Tensor& tensor : tensors) flat.push_back(tensor.flatten());
  at::Tensor all = at::cat(flat);
  group.all_reduce(all, Reduction::sum);
  int64_t start = 0;
  for (at::Tensor& tensor : tensors) {
    tensor.copy_(all.narrow(0, start, tensor.numel()).view_as(tensor));
    start += tensor.numel();
  }
}

}  // namespace

std::vector<at::Tensor> reduced_gradients(const Parameters& parameters, Mesh& mesh, double scale) {
  std::vector<at::Tensor> gradients, partial;
  for (const Parameter& parameter : parameters) {
    const at::Tensor& gradient = parameter.value.grad();
    gradients.push_back(gradient.defined() ? gradient.contiguous() : at::zeros_like(parameter.value));
    if (parameter.partial_gradient) partial.push_back(gradients.back());
  }
  all_reduce_flat(partial, mesh.tensor());
  all_reduce_flat(gradients, mesh.data());
  if (scale != 1.0)
    for (at::Tensor& gradient : gradients) gradient.mul_(scale);
  return gradients;
}

double clip_gradients(const Parameters& parameters, std::vector<at::Tensor>& gradients, double limit, Mesh& mesh) {
  at::Tensor sliced = at::zeros({1}, at::kDouble);
  double whole = 0.0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double square = gradients[i].to(at::kDouble).square().sum().item<double>();
    if (parameters[i].split == Split::none) {
      whole += square;
    } else {
      sliced += square;
    }
  }
  mesh.tensor().all_reduce(sliced, Reduction::sum);
  const double norm = std::sqrt(whole + sliced.item<double>());
  if (limit > 0.0 && norm > limit)
    for (at::Tensor& gradient : gradients) gradient.mul_(limit / norm);
  return norm;
}

at::Tensor gather_in_sample_order(const at::Tensor& rows, int64_t micro_batches, Mesh& mesh) {
  at::Tensor mine = rows.contiguous().clone();
  mesh.tensor().all_reduce(mine, Reduction::sum);
  const at::Tensor all = mesh.data().all_gather(mine).flatten(0, 1);  // micro-batches are dealt out in contiguous runs
  TORCH_CHECK(all.size(0) == micro_batches, "gathered ", all.size(0), " micro-batches of ", micro_batches);
  return all;
}

MicroBatchRange local_micro_batches(int64_t micro_batches, const Mesh& mesh) {
  TORCH_CHECK(micro_batches % mesh.shape().data == 0, micro_batches, " micro-batches over ", mesh.shape().data, " data ranks");
  const int64_t each = micro_batches / mesh.shape().data;
  return {mesh.data_rank() * each, (mesh.data_rank() + 1) * each};
}

}  // namespace flashmorph
