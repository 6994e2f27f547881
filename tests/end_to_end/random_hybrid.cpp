// random_hybrid TEACHER MIXER FORMAT OUTPUT: exports a hybrid of the teacher, every second layer linear, whose branches
// are random around their start, so that every weight of them counts. Exit code 2 and the reason when the pair is
// impossible.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "core/base/bad_input.h"
#include "core/export/hugging_face.h"
#include "core/model/stored_model.h"
#include "core/morph/morphable_model.h"

using namespace flashmorph;

int main(int argc, char** argv) try {
  TORCH_CHECK(argc == 5, "usage: random_hybrid TEACHER MIXER FORMAT OUTPUT");
  const c10::NoGradGuard no_gradient;
  const std::filesystem::path teacher = argv[1];
  const StoredModel stored = StoredModel::open(teacher);
  HybridSpec hybrid{.model = stored.spec, .mixer = {}, .full = {}};
  hybrid.mixer.kind = argv[2];
  const ExportFormat& format = export_format(argv[3], hybrid.model, hybrid.mixer);

  Shard whole;
  MorphableModel model = MorphableModel::load(stored.weights, stored.spec, {}, whole);
  model.add_branches(hybrid.mixer, 1);
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (const Parameter& parameter : model.branch_parameters()) {
    at::Tensor value = parameter.value;
    value.add_(0.2 * value.std(/*unbiased=*/false).clamp_min(0.5 * value.abs().mean()) *
               at::randn(value.sizes(), generator));
  }
  Routes routes;
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    hybrid.full.push_back(layer % 2 == 1);
    routes.push_back(layer % 2 == 1 ? Route::full() : Route::linear());
  }
  NamedTensors tensors;
  const MorphableModel mixed = model.hybrid(routes);
  for (const Parameter& parameter : mixed.all_parameters())
    tensors.emplace_back(parameter.name, parameter.value.detach());
  const ExportReport report = export_hugging_face(
      argv[4], format, {.source = teacher, .hybrid = hybrid, .tensors = tensors, .model_card = "# A random hybrid\n"});
  fmt::print("{}: read back on {} tokens, largest difference of a logit {:.2e}\n", report.format, report.tokens,
             report.largest_difference);
} catch (const BadInput& refused) {
  fmt::print(stderr, "{}\n", refused.what());
  return 2;
}
