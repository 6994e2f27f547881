#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/io/safetensors.h"

namespace flashmorph {

// A tensor that is made each time it is read.
struct MadeTensor {
  std::vector<int64_t> shape;
  at::ScalarType dtype;
  std::function<at::Tensor()> make;
};

// A tensor that is a view of a stored one, or that one itself.
struct TensorPart {
  std::string of;                                                       // the stored tensor
  std::vector<int64_t> whole;                                           // the shape that it must have
  std::function<at::Tensor(const at::Tensor&)> part = std::identity();  // a view; nothing is copied
};

// The weights of a Hugging Face folder by name: all tensors of model.safetensors, or of the files that
// model.safetensors.index.json lists. Opening reads headers only; a rank then reads just its slice of each tensor.
// Tensors that are made of others (an export's, under the names of the model it came from) or held in memory are a
// checkpoint as well.
class ModelFiles {
 public:
  static ModelFiles open(const std::filesystem::path& folder);            // throws BadInput
  static ModelFiles open_file(const std::filesystem::path& safetensors);  // a single file
  static ModelFiles of(const std::filesystem::path& origin, const std::map<std::string, MadeTensor>& tensors);
  static ModelFiles of(const std::filesystem::path& origin,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors);

  // These files' tensors under other names. BadInput when one is missing or has another shape.
  ModelFiles under(const std::map<std::string, TensorPart>& names) const;

  const std::filesystem::path& path() const { return path_; }
  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return tensors_.contains(name); }
  const TensorEntry& entry(const std::string& name) const;           // BadInput when missing
  const std::vector<int64_t>& shape(const std::string& name) const;  // BadInput when missing

  // The stored values as they are, not copied and not checked.
  at::Tensor view(const std::string& name) const { return stored(name, shape(name)); }

  // A copy in `dtype` on `device` of rows (dim 0) or columns (dim 1) [start, start + length) of a tensor; BadInput when
  // it is missing or its shape is not `expected`, or when a value read is not finite.
  at::Tensor read(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype,
                  at::Device device = at::kCPU) const;
  at::Tensor read(const std::string& name) const;  // its own shape and dtype
  at::Tensor read_slice(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype, int64_t dim,
                        int64_t start, int64_t length, at::Device device = at::kCPU) const;

  // From now on called before each tensor is read, by copies of this as well; it may throw.
  void before_each_read(std::function<void()> call) { before_each_read_ = std::move(call); }

  // The files that hold the weights, in a fixed order (for hashing).
  std::vector<std::filesystem::path> files() const;

 private:
  void require_shape(const std::string& name, at::IntArrayRef expected) const;
  at::Tensor stored(const std::string& name, at::IntArrayRef expected) const;
  std::string where(const std::string& name) const;  // for messages

  struct Stored {
    TensorEntry entry;
    std::shared_ptr<const SafetensorsFile> file;  // that its values come from; null: none
    std::function<at::Tensor()> make;
  };

  void add_all_of(const std::shared_ptr<const SafetensorsFile>& file);

  std::filesystem::path path_;
  std::map<std::string, Stored> tensors_;
  std::function<void()> before_each_read_ = [] {};
};

}  // namespace flashmorph
