#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/io/safetensors.h"

namespace flashmorph {

// A tensor that is made each time it is read.
struct MadeTensor {
  std::vector<int64_t> shape;
  at::ScalarType dtype;
  std::function<at::Tensor()> make;
};

// The weights of a Hugging Face folder by name: model.safetensors, or the files that model.safetensors.index.json
// lists. Opening reads headers only; a rank then reads just its slice of each tensor. Tensors that are made of others
// (an export's, under the names of the model it came from) or held in memory are a checkpoint as well.
class ModelFiles {
 public:
  static ModelFiles open(const std::filesystem::path& folder);            // throws BadInput
  static ModelFiles open_file(const std::filesystem::path& safetensors);  // a single file
  static ModelFiles of(const std::filesystem::path& origin, const std::map<std::string, MadeTensor>& tensors);
  static ModelFiles of(const std::filesystem::path& origin,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors);

  const std::filesystem::path& path() const { return path_; }
  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return tensors_.contains(name); }
  const TensorEntry& entry(const std::string& name) const;           // BadInput when missing
  const std::vector<int64_t>& shape(const std::string& name) const;  // BadInput when missing

  // A copy in `dtype` on the CPU of rows (dim 0) or columns (dim 1) [start, start + length) of a tensor; BadInput when
  // it is missing or its shape is not `expected`, or when a value read is not finite.
  at::Tensor read(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype) const;
  at::Tensor read(const std::string& name) const;  // its own shape and dtype
  at::Tensor read_slice(const std::string& name, at::IntArrayRef expected, at::ScalarType dtype, int64_t dim,
                        int64_t start, int64_t length) const;

  // From now on called before each tensor is read, by copies of this as well; it may throw.
  void before_each_read(std::function<void()> call) { before_each_read_ = std::move(call); }

  // The files that hold the weights, in a fixed order (for hashing).
  std::vector<std::filesystem::path> files() const;

 private:
  at::Tensor stored(const std::string& name, at::IntArrayRef expected) const;
  std::string where(const std::string& name) const;  // for messages

  struct Stored {
    TensorEntry entry;
    std::shared_ptr<const SafetensorsFile> file;  // null: made
    std::function<at::Tensor()> make;
  };

  void add(const std::string& name, std::shared_ptr<const SafetensorsFile> file);

  std::filesystem::path path_;
  std::map<std::string, Stored> tensors_;
  std::function<void()> before_each_read_ = [] {};
};

}  // namespace flashmorph
