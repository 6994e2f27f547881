#include "distributed/checkpoint/global_tensors.h"

#include <ATen/ATen.h>

#include "core/io/safetensors.h"
#include "distributed/parallel/together.h"

namespace flashmorph {

NamedTensors gather_global(const Parameters& parameters, Mesh& mesh) {
  NamedTensors whole;
  if (mesh.data_rank() != 0) return whole;
  const bool keeps = mesh.tensor_rank() == 0;
  for (const Parameter& parameter : parameters) {
    at::Tensor value = parameter.value.detach().contiguous();
    if (parameter.split != Split::none) {
      const at::Tensor slices = mesh.tensor().all_gather(value);
      if (keeps) value = at::cat(slices.unbind(0), parameter.split == Split::rows ? 0 : 1);
    }
    if (keeps) whole.emplace_back(parameter.name, value.cpu());
  }
  return whole;
}

void save_global(const std::filesystem::path& file, const Parameters& parameters, Mesh& mesh,
                 const std::map<std::string, std::string>& metadata) {
  const NamedTensors whole = gather_global(parameters, mesh);
  together(mesh.world(), [&] {
    if (mesh.world().rank() != 0) return;
    std::filesystem::create_directories(file.parent_path());
    write_safetensors(file, whole, metadata);
  });
}

}  // namespace flashmorph
