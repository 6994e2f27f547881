#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flashmorph {

// Tensors as the content of a safetensors file, in the given order: the header, then each one's bytes, copied to the
// host first where they are not contiguous there.
class SafetensorsContent {
 public:
  explicit SafetensorsContent(const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                              const std::map<std::string, std::string>& metadata = {});
  SafetensorsContent(const SafetensorsContent&) = delete;
  SafetensorsContent& operator=(const SafetensorsContent&) = delete;

  const std::vector<std::string_view>& pieces() const { return pieces_; }  // valid as long as this lives

 private:
  std::string header_;
  std::vector<at::Tensor> on_host_;
  std::vector<std::string_view> pieces_;
};

}  // namespace flashmorph
