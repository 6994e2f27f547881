#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/host_name.h"
#include "core/morph/state_watch.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/stages/training.h"

// The search for the first number of a step that is not finite.

namespace flashmorph {
namespace {

// Something that is not finite on this rank, and how early it comes.
struct Broken {
  int64_t order = -1;  // smaller is earlier; -1: nothing
  std::string what;
};

bool is_finite(const at::Tensor& values) { return at::isfinite(values).all().item<bool>(); }

Broken broken_weight(const StageModel& model) {
  const Parameters all = model.model.all_parameters();
  for (size_t i = 0; i < all.size(); ++i)
    if (!is_finite(all[i].value)) return {static_cast<int64_t>(i), fmt::format("weight {}{}", model.of, all[i].name)};
  return {};
}

// The first state of the step that is not finite, as this rank makes them.
Broken broken_state(const std::vector<StageModel>& models, const StepFunction& step, MicroBatches batches) {
  Broken first;
  int64_t seen = 0, micro_batch = 0;
  const StateWatch watch([&](const MorphableModel& model, int64_t layer, const char* piece, const at::Tensor& states) {
    ++seen;
    if (first.order >= 0 || is_finite(states.detach())) return;
    const auto named = std::ranges::find_if(models, [&](const StageModel& one) { return &one.model == &model; });
    const std::string of = named == models.end() ? "" : named->of;
    first = {seen, layer < 0 ? fmt::format("{}{}, micro-batch {}", of, piece, micro_batch)
                             : fmt::format("{}layer {}, {}, micro-batch {}", of, layer, piece, micro_batch)};
  });
  batches.batch = [&, batch = batches.batch](int64_t index) { return batch(micro_batch = index); };
  step(batches);
  return first;
}

Broken broken_gradient(const Parameters& parameters, const std::vector<at::Tensor>& gradients) {
  for (size_t i = gradients.size(); i-- > 0;)
    if (!is_finite(gradients[i]))
      return {static_cast<int64_t>(gradients.size() - i), "the gradient of " + parameters[i].name};
  return {};
}

// The earliest of all ranks: along the pipeline from its beginning, or for gradients from its end. Collective.
std::string earliest(const Broken& mine, bool from_the_end, Mesh& mesh) {
  const int64_t place = from_the_end ? mesh.shape().pipeline - 1 - mesh.pipeline_rank() : mesh.pipeline_rank();
  const int64_t key = mine.order < 0 ? INT64_MAX : (place << 40) + mine.order;
  const at::Tensor keys = mesh.world().all_gather(at::full({1}, key, at::kLong)).flatten();
  const auto rank = keys.argmin().item<int64_t>();
  if (keys[rank].item<int64_t>() == INT64_MAX) return "";
  const std::string text = fmt::format("{} (rank {} on {})", mine.what, rank, host_name());
  return mesh.world().broadcast_text(text, static_cast<int>(rank));
}

}  // namespace

void Training::stop_at_non_finite(const StepResult& found, const StepFunction& again, const MicroBatches& batches) {
  Mesh& mesh = context_.mesh;
  std::string first;
  for (const StageModel& model : models_)
    if (first.empty()) first = earliest(broken_weight(model), false, mesh);
  if (first.empty()) first = earliest(broken_state(models_, again, batches), false, mesh);
  if (first.empty()) first = earliest(broken_gradient(trained_.parameters, found.gradients), true, mesh);
  if (first.empty()) first = "no weight, state of a layer or gradient: the loss itself";
  const bool is_loss = !std::isfinite(found.loss);
  throw CommonFailure(
      fmt::format("{}, step {}: the {} is {}; the first that is not finite: {}. Nothing was updated; a lower lr or a "
                  "longer warm-up may help",
                  stage_, steps_done() + 1, is_loss ? "loss" : "gradient", is_loss ? found.loss : found.norm, first));
}

}  // namespace flashmorph
