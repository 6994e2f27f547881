#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <filesystem>
#include <string>

#include "core/export/hugging_face.h"
#include "core/morph/morphable_model.h"
#include "tests/support/small_model.h"

namespace flashmorph::test {

// A small teacher written to `folder`, and a hybrid of it whose layer 1 of 3 keeps full attention. Its branches are
// random around their start.
inline ExportContent small_hybrid(const std::filesystem::path& folder, const MixerSection& mixer = {},
                                  SmallModel sizes = {}) {
  const c10::NoGradGuard no_gradient;
  sizes.layers = 3;
  write_small_model(folder, sizes);
  ExportContent content{.source = folder,
                        .hybrid = {.model = ModelSpec::open(folder), .mixer = mixer, .full = {false, true, false}},
                        .tensors = {},
                        .model_card = "# A hybrid\n\nIts story.\n"};
  Shard whole;
  MorphableModel model =
      MorphableModel::load(ModelFiles::open(folder), content.hybrid.model, {.dtype = sizes.dtype}, whole);
  model.add_branches(mixer, 1);
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (const Parameter& parameter : model.branch_parameters())
    parameter.value.add_(0.05 * at::randn(parameter.value.sizes(), generator, sizes.dtype));
  const MorphableModel hybrid = model.hybrid({Route::linear(), Route::full(), Route::linear()});
  for (const Parameter& parameter : hybrid.all_parameters())
    content.tensors.emplace_back(parameter.name, parameter.value.detach());
  return content;
}

}  // namespace flashmorph::test
