// random_hybrid TEACHER MIXER[+sinks] OUTPUT [FORMAT]: exports a hybrid of the teacher, every second layer linear,
// whose branches are random around their start, so that every weight of them counts, to OUTPUT/FORMAT for each format,
// or for this one. Prints a line a format: its name, and after a tab the reason when it cannot hold the hybrid.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "core/export/hugging_face.h"
#include "core/mixer/window.h"
#include "core/model/stored_model.h"
#include "core/morph/morphable_model.h"

using namespace flashmorph;

int main(int argc, char** argv) {
  TORCH_CHECK(argc == 4 || argc == 5, "usage: random_hybrid TEACHER MIXER OUTPUT [FORMAT]");
  const c10::NoGradGuard no_gradient;
  const std::filesystem::path teacher = argv[1];
  const StoredModel stored = StoredModel::open(teacher);
  HybridSpec hybrid{.model = stored.spec, .mixer = {}, .full = {}};
  const std::string mixer = argv[2];
  hybrid.mixer.kind = mixer.substr(0, mixer.find('+'));
  if (hybrid.mixer.kind == "window")  // shorter than what is run
    hybrid.mixer.own.of<WindowSettings>() = {.window = 50, .sinks = mixer.ends_with("+sinks")};

  Shard whole;
  MorphableModel model = MorphableModel::load(stored.weights, stored.spec, {}, whole);
  model.add_branches(hybrid.mixer, 1);
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (const Parameter& parameter : model.branch_parameters()) {
    at::Tensor value = parameter.value;
    const at::Tensor size = value.std(/*unbiased=*/false).clamp_min(0.5 * value.abs().mean());
    value.add_((size.item<double>() > 0.0 ? 0.2 * size : at::ones({})) * at::randn(value.sizes(), generator));
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
  for (const ExportFormat* format : export_formats()) {
    if (argc == 5 && format->name() != argv[4]) continue;
    const std::string obstacle = format->obstacle(hybrid.model, hybrid.mixer);
    fmt::print("{}\t{}\n", format->name(), obstacle);
    if (obstacle.empty())
      export_hugging_face(
          std::filesystem::path(argv[3]) / format->name(), *format,
          {.source = teacher, .hybrid = hybrid, .tensors = tensors, .model_card = "# A random hybrid\n"});
  }
}
