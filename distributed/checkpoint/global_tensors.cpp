#include "distributed/checkpoint/global_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <sstream>

#include "core/io/safetensors.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

// This pipeline rank's tensors put together on tensor rank 0; empty on the others. A tied weight is left to the first
// pipeline rank.
NamedTensors gather_slices(const Parameters& parameters, Mesh& mesh) {
  NamedTensors whole;
  const bool keeps = mesh.tensor_rank() == 0;
  for (const Parameter& parameter : parameters) {
    at::Tensor value = parameter.value.detach().contiguous();
    if (parameter.split != Split::none) {
      const at::Tensor slices = mesh.tensor().all_gather(value);
      if (keeps)
        value = at::cat(slices.slice(0, 0, std::nullopt, parameter.replicas).unbind(0),
                        parameter.split == Split::rows ? 0 : 1);
    }
    if (counts_here(parameter, mesh) && keeps) whole.emplace_back(parameter.name, value.cpu());
  }
  return whole;
}

// "name dimensions size size ...", a line a tensor.
std::string described(const NamedTensors& tensors) {
  std::ostringstream text;
  for (const auto& [name, tensor] : tensors) {
    text << name << ' ' << tensor.dim();
    for (const int64_t size : tensor.sizes()) text << ' ' << size;
    text << '\n';
  }
  return text.str();
}

NamedTensors empty_tensors(const std::string& description, at::ScalarType dtype) {
  NamedTensors tensors;
  std::istringstream lines(description);
  std::string name;
  for (int64_t dimensions = 0; lines >> name >> dimensions;) {
    std::vector<int64_t> sizes(dimensions);
    for (int64_t& size : sizes) lines >> size;
    tensors.emplace_back(name, at::empty(sizes, dtype));
  }
  return tensors;
}

// What each pipeline rank holds, on the first one.
NamedTensors gather_layers(NamedTensors own, at::ScalarType dtype, Communicator& pipeline) {
  for (int rank = 1; rank < pipeline.size(); ++rank) {
    NamedTensors theirs = empty_tensors(pipeline.broadcast_text(described(own), rank), dtype);
    if (pipeline.rank() == rank)
      for (const auto& [name, tensor] : own) pipeline.send(tensor, 0);
    if (pipeline.rank() != 0) continue;
    for (auto& [name, tensor] : theirs) {
      pipeline.receive(tensor, rank);
      own.emplace_back(name, tensor);
    }
  }
  return pipeline.rank() == 0 ? own : NamedTensors();
}

}  // namespace

NamedTensors gather_global(const Parameters& parameters, Mesh& mesh) {
  if (mesh.data_rank() != 0) return {};
  NamedTensors whole = gather_slices(parameters, mesh);
  if (mesh.tensor_rank() == 0)
    whole = gather_layers(std::move(whole), parameters.at(0).value.scalar_type(), mesh.pipeline());
  std::sort(whole.begin(), whole.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return whole;
}

void save_global(const std::filesystem::path& file, const Parameters& parameters, Mesh& mesh,
                 const std::map<std::string, std::string>& metadata) {
  const NamedTensors whole = gather_global(parameters, mesh);
  on_all_ranks(mesh.world(), [&] {
    if (mesh.world().rank() != 0) return;
    std::filesystem::create_directories(file.parent_path());
    write_safetensors(file, whole, metadata);
  });
}

}  // namespace flashmorph
