#include "core/io/model_files.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/base/bad_input.h"
#include "core/base/piecewise_copy.h"
#include "core/io/json_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

std::string text_of(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// The file that an index maps a tensor to, which must lie in the index's own folder.
std::string file_name(const json& value, const std::string& where) {
  const std::string name = value.is_string() ? value.get<std::string>() : "";
  if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos)
    throw BadInput(where, "is not mapped to a file of this folder");
  return name;
}

// Names what is there instead, when it is weights of another kind.
[[noreturn]] void refuse_without_weights(const std::filesystem::path& folder) {
  std::string instead;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".gguf"))
      instead = "; " + name + " can be made one by deploy/gguf_to_hf.py";
    else if (instead.empty() && (name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".safetensors")))
      instead = "; there is " + name + ": load it in transformers and write it by save_pretrained";
  }
  throw BadInput(folder.string(), "has neither model.safetensors nor model.safetensors.index.json" + instead);
}

// One pass: the smallest and the largest of values are not finite where any of them is not.
bool all_finite(const at::Tensor& values) {
  if (values.numel() == 0) return true;
  const auto [least, most] = at::aminmax(values);
  return at::stack({least, most}).isfinite().all().item<bool>();
}

at::Tensor checked_copy(const at::Tensor& part, at::ScalarType dtype, at::Device device, const std::string& where) {
  if (!part.is_floating_point())
    throw BadInput(where, std::string("is ") + c10::toString(part.scalar_type()) + ", expected a floating-point type");
  const at::Tensor copy = at::empty(part.sizes(), at::TensorOptions(dtype).device(device));
  copy_in_pieces({{part, copy}}, copying_with(device));
  if (!all_finite(copy))
    throw BadInput(where, std::string("holds values that are not finite as ") + c10::toString(dtype));
  return copy;
}

}  // namespace

ModelFiles ModelFiles::open(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) throw BadInput(folder.string(), "is not a folder");
  const std::filesystem::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  ModelFiles files;
  if (!std::filesystem::exists(single) && !std::filesystem::exists(index)) refuse_without_weights(folder);
  if (std::filesystem::exists(single)) {
    files = open_file(single);
    files.path_ = folder;
    return files;
  }
  files.path_ = folder;
  const json root = read_json_file(index);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
    throw BadInput(index.string(), "has no weight_map of tensor names to files");
  std::set<std::string> names;
  for (const auto& [tensor, value] : root["weight_map"].items())
    names.insert(file_name(value, index.string() + ": " + tensor));
  for (const std::string& name : names) files.add_all_of(SafetensorsFile::open(folder / name));
  return files;
}

ModelFiles ModelFiles::open_file(const std::filesystem::path& safetensors) {
  ModelFiles files;
  files.path_ = safetensors;
  files.add_all_of(SafetensorsFile::open(safetensors));
  return files;
}

ModelFiles ModelFiles::of(const std::filesystem::path& origin, const std::map<std::string, MadeTensor>& tensors) {
  ModelFiles files;
  files.path_ = origin;
  for (const auto& [name, made] : tensors) {
    const uint64_t bytes = static_cast<uint64_t>(c10::multiply_integers(made.shape)) * c10::elementSize(made.dtype);
    files.tensors_[name] = {{made.dtype, made.shape, /*offset=*/0, bytes}, nullptr, made.make};
  }
  return files;
}

ModelFiles ModelFiles::of(const std::filesystem::path& origin,
                          const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  std::map<std::string, MadeTensor> made;
  for (const auto& [name, tensor] : tensors)
    made[name] = {tensor.sizes().vec(), tensor.scalar_type(), [tensor = tensor] { return tensor; }};
  return of(origin, made);
}

void ModelFiles::add_all_of(const std::shared_ptr<const SafetensorsFile>& file) {
  for (const auto& [name, entry] : file->entries())
    if (!tensors_.emplace(name, Stored{entry, file, [file, name = name] { return file->tensor(name); }}).second)
      throw BadInput(where(name), "is in two files, the second is " + file->path().filename().string());
}

ModelFiles ModelFiles::under(const std::map<std::string, TensorPart>& names) const {
  ModelFiles files;
  files.path_ = path_;
  files.before_each_read_ = before_each_read_;
  for (const auto& [name, source] : names) {
    require_shape(source.of, source.whole);
    const Stored& whole = tensors_.at(source.of);
    const auto shape = source.part(at::empty(source.whole, at::TensorOptions(at::kMeta))).sizes();
    const uint64_t bytes = static_cast<uint64_t>(c10::multiply_integers(shape)) * c10::elementSize(whole.entry.dtype);
    files.tensors_[name] = {{whole.entry.dtype, shape.vec(), whole.entry.offset, bytes},
                            whole.file,
                            [make = whole.make, part = source.part] { return part(make()); }};
  }
  return files;
}

std::vector<std::string> ModelFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, stored] : tensors_) names.push_back(name);
  return names;
}

const TensorEntry& ModelFiles::entry(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw BadInput(path_.string(), "has no tensor " + name);
  return found->second.entry;
}

const std::vector<int64_t>& ModelFiles::shape(const std::string& name) const { return entry(name).shape; }

void ModelFiles::require_shape(const std::string& name, at::IntArrayRef expected) const {
  if (at::IntArrayRef(shape(name)) != expected)
    throw BadInput(where(name), "has shape " + text_of(shape(name)) + ", expected " + text_of(expected));
}

at::Tensor ModelFiles::stored(const std::string& name, at::IntArrayRef expected) const {
  require_shape(name, expected);
  before_each_read_();
  return tensors_.at(name).make();
}

std::string ModelFiles::where(const std::string& name) const { return path_.string() + ": tensor " + name; }

at::Tensor ModelFiles::read(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype,
                            at::Device device) const {
  return checked_copy(stored(name, expected), dtype, device, where(name));
}

at::Tensor ModelFiles::read(const std::string& name) const { return read(name, shape(name), entry(name).dtype); }

at::Tensor ModelFiles::read_slice(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype, int64_t dim,
                                  int64_t start, int64_t length, at::Device device) const {
  return checked_copy(stored(name, expected).narrow(dim, start, length), dtype, device, where(name));
}

std::vector<std::filesystem::path> ModelFiles::files() const {
  std::set<std::filesystem::path> files;
  for (const auto& [name, stored] : tensors_)
    if (stored.file) files.insert(stored.file->path());
  return {files.begin(), files.end()};
}

}  // namespace flashmorph
