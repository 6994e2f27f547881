#include "distributed/stages/latency.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "core/base/clock.h"

namespace flashmorph {
namespace {

constexpr int kRuns = 5;

double milliseconds_of(const MorphableModel& model, int64_t layer, const Route& route, const at::Tensor& x,
                       const Positions& positions) {
  model.attend(layer, x, route, positions);  // the first one also sets up
  std::vector<double> runs;
  for (int run = 0; run < kRuns; ++run) {
    const Stopwatch watch;
    model.attend(layer, x, route, positions).select(1, -1).sum().item<double>();  // waits for a device as well
    runs.push_back(1000.0 * watch.seconds());
  }
  std::ranges::nth_element(runs, runs.begin() + kRuns / 2);
  return runs[kRuns / 2];
}

}  // namespace

proto::LayerLatency layer_latency(const MorphableModel& model, int64_t length, Mesh& mesh) {
  const c10::NoGradGuard no_gradient;
  const Placement& placement = model.placement();
  const at::Tensor x =
      at::randn({1, length, model.spec().hidden}, at::TensorOptions(placement.dtype).device(placement.device));
  const Positions positions = model.positions(0, length);
  at::Tensor times = at::zeros({model.layer_count(), 2}, at::kDouble);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    times[l][0] = milliseconds_of(model, l, Route::full(), x, positions);
    times[l][1] = milliseconds_of(model, l, Route::linear(), x, positions);
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
