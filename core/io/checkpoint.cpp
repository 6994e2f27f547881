#include "core/io/checkpoint.h"

#include <ATen/ATen.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

std::string text_of(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

json read_index(const std::filesystem::path& file) {
  std::ifstream in(file);
  json index = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw BadInput(file.string(), "has no weight_map of tensor names to files");
  return index["weight_map"];
}

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) throw BadInput(folder.string(), "is not a folder");
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(index)) {
    Checkpoint checkpoint = open_file(folder / "model.safetensors");
    checkpoint.path_ = folder;
    return checkpoint;
  }
  Checkpoint checkpoint;
  checkpoint.path_ = folder;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> opened;
  const json weight_map = read_index(index);
  for (const auto& [name, value] : weight_map.items()) {
    if (!value.is_string() || value.get<std::string>().find('/') != std::string::npos)
      throw BadInput(index.string() + ": " + name, "is not mapped to a file of this folder");
    const std::string file = value.get<std::string>();
    if (!opened.contains(file)) opened[file] = SafetensorsFile::open(folder / file);
    if (!opened[file]->entries().contains(name)) throw BadInput(index.string() + ": " + name, "is not in " + file);
    checkpoint.file_of_[name] = opened[file];
  }
  return checkpoint;
}

Checkpoint Checkpoint::open_file(const std::filesystem::path& safetensors) {
  Checkpoint checkpoint;
  checkpoint.path_ = safetensors;
  const auto file = SafetensorsFile::open(safetensors);
  for (const auto& [name, entry] : file->entries()) checkpoint.file_of_[name] = file;
  return checkpoint;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

const std::vector<int64_t>& Checkpoint::shape(const std::string& name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) throw BadInput(path_.string(), "has no tensor " + name);
  return found->second->entries().at(name).shape;
}

at::Tensor Checkpoint::read(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype) const {
  return read_slice(name, expected, dtype, 0, 0, expected[0]);
}

at::Tensor Checkpoint::read_slice(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype, int64_t dim,
                                  int64_t start, int64_t length) const {
  if (at::IntArrayRef(shape(name)) != expected)
    throw BadInput(path_.string() + ": tensor " + name, "has shape " + text_of(shape(name)) + ", expected " + text_of(expected));
  const at::Tensor stored = file_of_.at(name)->tensor(name);
  if (!stored.is_floating_point())
    throw BadInput(path_.string() + ": tensor " + name,
                   std::string("is ") + c10::toString(stored.scalar_type()) + ", expected a floating-point type");
  const at::Tensor slice = stored.narrow(dim, start, length).to(dtype).clone(at::MemoryFormat::Contiguous);
  if (!slice.isfinite().all().item<bool>())
    throw BadInput(path_.string() + ": tensor " + name, "holds values that are not finite (NaN or infinity)");
  return slice;
}

std::vector<std::filesystem::path> Checkpoint::files() const {
  std::set<std::filesystem::path> files;
  for (const auto& [name, file] : file_of_) files.insert(file->path());
  return {files.begin(), files.end()};
}

}  // namespace flashmorph
