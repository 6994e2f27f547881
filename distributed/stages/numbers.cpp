#include "distributed/stages/numbers.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/host_name.h"
#include "core/model/attention.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

// Something that is not finite on this rank, and how early it comes.
struct Broken {
  int64_t order = -1;  // smaller is earlier; -1: nothing
  std::string what;
};

bool is_finite(const at::Tensor& values) { return at::isfinite(values).all().item<bool>(); }

Broken broken_weight(const MorphableModel& model, const std::string& of) {
  const Parameters all = model.all_parameters();
  for (size_t i = 0; i < all.size(); ++i)
    if (!is_finite(all[i].value)) return {static_cast<int64_t>(i), fmt::format("weight {}{}", of, all[i].name)};
  return {};
}

// Notes the first tensor of a forward pass that is not finite.
class StateWatch {
 public:
  explicit StateWatch(std::string of) : of_(std::move(of)) {}

  void see(const at::Tensor& states, int64_t micro_batch, int64_t layer, const char* piece) {
    ++seen_;
    if (first_.order >= 0 || is_finite(states)) return;
    first_ = {seen_, layer < 0 ? fmt::format("{}{}, micro-batch {}", of_, piece, micro_batch)
                               : fmt::format("{}layer {}, {}, micro-batch {}", of_, layer, piece, micro_batch)};
  }
  const Broken& first() const { return first_; }

 private:
  std::string of_;
  int64_t seen_ = 0;
  Broken first_;
};

at::Tensor through_layer(const ForwardPass& pass, int64_t l, const at::Tensor& x, const Positions& positions,
                         int64_t micro_batch, StateWatch& watch) {
  const MorphableModel& model = pass.model;
  const MorphableLayer& layer = model.layer(l);
  const Route& route = pass.routes[static_cast<size_t>(l)];
  const at::Tensor normed = model.normed_input(l, x);
  watch.see(normed, micro_batch, l, "the normed input");
  if (pass.beside_branches || route.kind != Route::Kind::linear)
    watch.see(full_attention(normed, *layer.attention, model.spec(), positions), micro_batch, l, "full attention");
  if (pass.beside_branches || route.kind != Route::Kind::full)
    watch.see(layer.branch->forward(normed, positions), micro_batch, l, "the linear branch");
  const at::Tensor h = model.attend(l, x, route, positions);
  watch.see(h, micro_batch, l, "the states behind its attention");
  if (!pass.to_head && l + 1 == model.layer_count()) return h;
  const at::Tensor next = model.feed_forward(l, h);
  watch.see(next, micro_batch, l, "the feed-forward's output");
  return next;
}

Broken broken_state(const ForwardPass& pass, int64_t step, const SampleStream& data, Mesh& mesh) {
  const MorphableModel& model = pass.model;
  StateWatch watch(pass.of);
  Pipeline(mesh).stream(local_micro_batches(data.micro_batches(step), mesh),
                        state_shape(model, data.micro_batch_shape(step)), [&](int64_t index, at::Tensor x) {
                          const Batch batch = data.micro_batch(step, index);
                          const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
                          if (model.has_embedding())
                            watch.see(x = model.embed(batch.tokens_BT), index, -1, "the embedding");
                          for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l)
                            x = through_layer(pass, l, x, positions, index, watch);
                          if (pass.to_head && model.has_head())
                            watch.see(model.final_hidden(x), index, -1, "the final norm");
                          return x;
                        });
  return watch.first();
}

Broken broken_gradient(const NamedGradients& gradients) {
  for (size_t i = gradients.size(); i-- > 0;)
    if (!is_finite(gradients[i].second))
      return {static_cast<int64_t>(gradients.size() - i), "the gradient of " + gradients[i].first};
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

std::string first_broken(int64_t step, const std::vector<ForwardPass>& passes, const NamedGradients& gradients,
                         const SampleStream& data, Mesh& mesh) {
  for (const ForwardPass& pass : passes)
    if (const std::string found = earliest(broken_weight(pass.model, pass.of), false, mesh); !found.empty())
      return found;
  for (const ForwardPass& pass : passes)
    if (const std::string found = earliest(broken_state(pass, step, data, mesh), false, mesh); !found.empty())
      return found;
  if (const std::string found = earliest(broken_gradient(gradients), true, mesh); !found.empty()) return found;
  return "no weight, state of a layer or gradient: the loss itself";
}

}  // namespace

bool StepNumbers::are_finite() const { return std::isfinite(loss) && std::isfinite(gradient); }

void stop_at_numbers(const StepNumbers& numbers, const std::string& stage, int64_t step,
                     const std::vector<ForwardPass>& passes, const NamedGradients& gradients, const SampleStream& data,
                     StageContext& context) {
  const c10::NoGradGuard no_gradient;
  const bool is_loss = !std::isfinite(numbers.loss);
  throw CommonFailure(
      fmt::format("{}, step {}: the {} is {}; the first that is not finite: {}. Nothing was updated; a lower lr or a "
                  "longer warm-up may help",
                  stage, step + 1, is_loss ? "loss" : "gradient", is_loss ? numbers.loss : numbers.gradient,
                  first_broken(step, passes, gradients, data, context.mesh)));
}

}  // namespace flashmorph
