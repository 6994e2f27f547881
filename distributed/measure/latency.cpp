#include "distributed/measure/latency.h"

#include <ATen/ATen.h>

#include "core/eval/pace.h"

namespace flashmorph {

proto::LayerLatency layer_latency(const MorphableModel& model, int64_t length, Mesh& mesh) {
  at::Tensor times = at::zeros({model.layer_count(), 2}, at::kDouble);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    times[l][0] = 1000.0 * attention_seconds(model, l, Route::full(), length);
    times[l][1] = 1000.0 * attention_seconds(model, l, Route::linear(), length);
  }
  mesh.world().all_reduce(times, Reduction::max);
  proto::LayerLatency latency;
  latency.set_length(length);
  for (int64_t l = 0; l < model.layer_count(); ++l) {
    latency.add_full(times[l][0].item<double>());
    latency.add_linear(times[l][1].item<double>());
  }
  return latency;
}

LayerLatency numbers_of(const proto::LayerLatency& latency) {
  return {{latency.full().begin(), latency.full().end()}, {latency.linear().begin(), latency.linear().end()}};
}

}  // namespace flashmorph
