#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "core/io/model_files.h"
#include "core/morph/morphable_model.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph::test {

inline MorphableModel model_in(const std::filesystem::path& folder, at::ScalarType dtype) {
  static Shard whole;
  return MorphableModel::load(ModelFiles::open(folder), ModelSpec::open(folder), {0, 1, dtype, at::kCPU}, whole);
}

inline MorphableModel passkey_teacher() { return model_in("tests/data/passkey-teacher", at::kFloat); }

// Random weights, a few layers, both kinds of attention in each; float64, so that rounding decides nothing.
inline MorphableModel small_random_model() {
  const TemporaryFolder folder;
  write_small_model(folder.path(), {.layers = 3, .tied = false, .dtype = at::kDouble, .seed = 4});
  MorphableModel model = model_in(folder.path(), at::kDouble);
  model.add_branches({}, 1);
  return model;
}

inline Routes all_full(const MorphableModel& model) {
  return Routes(static_cast<size_t>(model.layer_count()), Route::full());
}

inline Routes full_linear_full() { return {Route::full(), Route::linear(), Route::full()}; }

// The definition: every logit of the whole sequence, with no caches. Rows are the places, [tokens, vocabulary].
inline at::Tensor logits_of(const MorphableModel& model, const Routes& routes, const std::vector<int64_t>& tokens) {
  const at::Tensor input = at::tensor(tokens, at::kLong).unsqueeze(0);
  const at::Tensor hidden = model.forward(input, routes, model.positions(0, input.size(1)));
  return hidden.squeeze(0).matmul(model.head().t());
}

}  // namespace flashmorph::test
