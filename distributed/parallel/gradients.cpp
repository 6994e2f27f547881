#include "distributed/parallel/gradients.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

namespace flashmorph {
namespace {

// The tensors laid end to end, and back.
at::Tensor flat(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& tensor : tensors) parts.push_back(tensor.flatten());
  return at::cat(parts);
}

void copy_flat(const at::Tensor& flat, std::vector<at::Tensor>& tensors) {
  int64_t start = 0;
  for (at::Tensor& tensor : tensors) {
    tensor.copy_(flat.narrow(0, start, tensor.numel()).view_as(tensor));
    start += tensor.numel();
  }
}

// One all-reduce for many tensors, in place.
void all_reduce_flat(std::vector<at::Tensor>& tensors, Communicator& group) {
  if (tensors.empty() || group.size() == 1) return;
  at::Tensor all = flat(tensors);
  group.all_reduce(all, Reduction::sum);
  copy_flat(all, tensors);
}

// One reduce-scatter for many tensors, in place: the sums in this rank's partition of them, zeros elsewhere.
void reduce_scatter_flat(std::vector<at::Tensor>& tensors, Communicator& group) {
  if (tensors.empty() || group.size() == 1) return;
  const at::Tensor all = flat(tensors);
  const int64_t partition = partition_of(all.numel(), group);
  at::Tensor partitions =
      at::constant_pad_nd(all, {0, partition * group.size() - all.numel()}).view({group.size(), partition});
  const at::Tensor own = group.reduce_scatter(partitions);
  partitions.zero_();
  partitions[group.rank()].copy_(own);
  copy_flat(partitions.view(-1), tensors);
}

// A replicated slice at its place among zeros, so that one sum over the group adds up the copies of each slice.
at::Tensor among_all_slices(const at::Tensor& slice, int64_t index, int64_t slices) {
  std::vector<int64_t> sizes = slice.sizes().vec();
  sizes[0] *= slices;
  at::Tensor all = at::zeros(sizes, slice.options());
  all.narrow(0, index * slice.size(0), slice.size(0)).copy_(slice);
  return all;
}

// Partial gradients and copies of one slice, added up in one all-reduce, in place.
void add_over_tensor_ranks(const Parameters& parameters, std::vector<at::Tensor>& gradients, Mesh& mesh) {
  std::vector<at::Tensor> sums;
  std::vector<std::pair<at::Tensor, at::Tensor>> places;  // where a slice's sum is, and where it goes
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].partial_gradient) {
      sums.push_back(gradients[i]);
    } else if (parameters[i].replicas > 1) {
      TORCH_CHECK(parameters[i].split == Split::rows, parameters[i].name, ": only rows are replicated");
      const int64_t rows = gradients[i].size(0), index = mesh.tensor_rank() / parameters[i].replicas;
      sums.push_back(among_all_slices(gradients[i], index, mesh.shape().tensor / parameters[i].replicas));
      places.emplace_back(sums.back().narrow(0, index * rows, rows), gradients[i]);
    }
  }
  all_reduce_flat(sums, mesh.tensor());
  for (const auto& [sum, gradient] : places) gradient.copy_(sum);
}

// A tied weight's gradients on the two ends that hold it, added up in place.
void add_over_pipeline_ends(const Parameters& parameters, std::vector<at::Tensor>& gradients, Mesh& mesh) {
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].tied_over_pipeline) mesh.pipeline_ends().all_reduce(gradients[i], Reduction::sum);
}

}  // namespace

int64_t partition_of(int64_t elements, const Communicator& data) { return (elements + data.size() - 1) / data.size(); }

std::vector<at::Tensor> reduced_gradients(const Parameters& parameters, Mesh& mesh, DataSum over_data) {
  std::vector<at::Tensor> gradients;
  for (const Parameter& parameter : parameters) {
    const at::Tensor& gradient = parameter.value.grad();
    gradients.push_back(gradient.defined() ? gradient.contiguous() : at::zeros_like(parameter.value));
  }
  add_over_tensor_ranks(parameters, gradients, mesh);
  add_over_pipeline_ends(parameters, gradients, mesh);
  over_data == DataSum::own_partition ? reduce_scatter_flat(gradients, mesh.data())
                                      : all_reduce_flat(gradients, mesh.data());
  return gradients;
}

double clip_gradients(const Parameters& parameters, std::vector<at::Tensor>& gradients, double limit, Mesh& mesh,
                      DataSum over_data) {
  at::Tensor square = at::zeros({1}, at::kDouble);
  std::vector<at::Tensor> counted;
  for (size_t i = 0; i < parameters.size(); ++i)
    if (counts_here(parameters[i], mesh)) counted.push_back(gradients[i]);
  if (!counted.empty()) square += at::stack(at::_foreach_norm(counted, 2, at::kDouble)).square().sum().cpu();
  mesh.replica().all_reduce(square, Reduction::sum);
  if (over_data == DataSum::own_partition) mesh.data().all_reduce(square, Reduction::sum);
  const double norm = std::sqrt(square.item<double>());
  if (limit > 0.0 && norm > limit) at::_foreach_mul_(gradients, limit / norm);
  return norm;
}

bool counts_here(const Parameter& parameter, const Mesh& mesh) {
  const bool first_copy =
      parameter.split == Split::none ? mesh.tensor_rank() == 0 : mesh.tensor_rank() % parameter.replicas == 0;
  return first_copy && !(parameter.tied_over_pipeline && mesh.pipeline_rank() != 0);
}

at::Tensor gather_in_sample_order(const at::Tensor& rows, int64_t micro_batches, Mesh& mesh) {
  at::Tensor mine = rows.contiguous().clone();
  mesh.tensor().all_reduce(mine, Reduction::sum);
  const at::Tensor all = mesh.data().all_gather(mine).flatten(0, 1);  // micro-batches are dealt out in contiguous runs
  TORCH_CHECK(all.size(0) == micro_batches, "gathered ", all.size(0), " micro-batches of ", micro_batches);
  return all;
}

MicroBatchRange local_micro_batches(int64_t micro_batches, const Mesh& mesh) {
  TORCH_CHECK(micro_batches % mesh.shape().data == 0, micro_batches, " micro-batches over ", mesh.shape().data,
              " data ranks");
  const int64_t each = micro_batches / mesh.shape().data;
  return {mesh.data_rank() * each, (mesh.data_rank() + 1) * each};
}

}  // namespace flashmorph
