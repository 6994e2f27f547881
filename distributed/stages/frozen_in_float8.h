#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/parameter.h"
#include "core/morph/morphable_model.h"

namespace flashmorph {

// A model that a stage works with, by the words before the names of its weights and layers.
struct StageModel {
  const MorphableModel& model;
  std::string of = "";           // "teacher's "; "" for the stage's own
  bool mixes_attention = false;  // its branches count too, and gradients go back through what is frozen
};

// device.frozen_dtype: fp8. While this lives, products with the models' frozen projections take float8 operands
// (core/ops/quantised.h): queries, keys, values and outputs of attention, the feed-forwards', and where attention is
// mixed the branches' and their output gates'. The weights stay as they are.
class FrozenInFloat8 {
 public:
  // With another frozen_dtype it does nothing.
  FrozenInFloat8(const std::vector<StageModel>& models, const DeviceSection& device);
  ~FrozenInFloat8();
  FrozenInFloat8(const FrozenInFloat8&) = delete;
  FrozenInFloat8& operator=(const FrozenInFloat8&) = delete;

  void require_some() const;  // BadInput where there are such weights and the products can take none of them

  const Parameters& forms() const { return forms_; }  // what is multiplied by, under the weights' names
  std::string summary() const;                        // how many projections, and their bytes; "" for none

 private:
  void quantise(const Parameters& weights, bool going_back);

  std::vector<at::Tensor> quantised_;  // the first of each product's weights, which hold what is attached to them
  Parameters forms_;
  int64_t taken_ = 0, left_ = 0;  // projections
  std::string first_left_;
};

}  // namespace flashmorph
