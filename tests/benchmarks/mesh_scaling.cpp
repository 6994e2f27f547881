// mesh_scaling MODEL PIPELINE TENSOR MICRO_BATCHES LENGTH: one row of a Markdown table about select's steps on the mesh of
// these ranks (data = ranks / (pipeline * tensor); MICRO_BATCHES of one sequence each a data rank). Run by mesh_scaling.sh.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/io/checkpoint.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/parallel/layer_cuts.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/select.h"
#include "distributed/stages/trainer.h"

namespace {

using namespace flashmorph;

constexpr int kWarmUp = 1, kSteps = 5;

// Random tokens; the last quarter of the sequence counts.
Batch batch_of_noise(int64_t length, int64_t vocabulary) {
  Batch batch{at::randint(vocabulary, {1, length}, at::kLong), at::zeros({1, length}, at::kBool), std::nullopt};
  batch.answers_BT.slice(1, 3 * length / 4).fill_(true);
  return batch;
}

double megabytes_resident() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_maxrss) / 1024.0;
}

double over_world(double value, Communicator& world, Reduction reduction) {
  at::Tensor all = at::full({1}, value, at::kDouble);
  world.all_reduce(all, reduction);
  return all.item<double>();
}

}  // namespace

int main(int argc, char** argv) {
  MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  if (argc != 6) {
    std::fprintf(stderr, "usage: mesh_scaling MODEL PIPELINE TENSOR MICRO_BATCHES LENGTH\n");
    return 2;
  }
  const std::string path = argv[1];
  const int64_t pipelines = std::atoll(argv[2]), tensors = std::atoll(argv[3]), count = std::atoll(argv[4]), length = std::atoll(argv[5]);
  at::set_num_threads(1);
  Mesh mesh(*world, MeshShape::of(world->size(), tensors, pipelines));
  const ModelSpec spec = ModelSpec::open(path);
  const auto layers = balanced_layers({.layers = std::vector<double>(spec.layers, 1.0)}, pipelines);
  MorphableModel model =
      MorphableModel::load(Checkpoint::open(path), spec, {mesh.tensor_rank(), tensors, at::kFloat, at::kCPU}, mesh.shard(),
                           layers[mesh.pipeline_rank()], mesh.neighbours());
  model.add_branches({}, 1);

  Pipeline pipeline(mesh);
  std::vector<double> seconds;
  double waited = 0.0, worked = 0.0;
  int64_t bytes = 0;
  for (int step = 0; step < kWarmUp + kSteps; ++step) {
    world->barrier();
    const double waited_before = pipeline.seconds_waited();
    const int64_t bytes_before = mesh.bytes_moved();
    const Stopwatch watch;
    pipeline.forward_backward({0, count}, state_shape(model, {1, length}), /*with_fixed=*/true,
                              [&](int64_t, const States& x) {
                                const at::Tensor alpha =
                                    at::full({model.own_layers().count()}, 0.5, at::kDouble).set_requires_grad(true);
                                return mix_beside_teacher(model, batch_of_noise(length, spec.vocabulary),
                                                          mixing_routes(alpha, alpha), x);
                              });
    const double own = watch.seconds();
    const double whole = over_world(own, *world, Reduction::max);
    if (step < kWarmUp) continue;
    seconds.push_back(whole);
    waited += pipeline.seconds_waited() - waited_before + (whole - own);  // after its last task a rank waits for the step's end
    worked += whole;
    bytes = mesh.bytes_moved() - bytes_before;
  }
  std::ranges::sort(seconds);
  const double step = seconds[kSteps / 2], idle = over_world(waited, *world, Reduction::sum) / over_world(worked, *world, Reduction::sum);
  const double formula = static_cast<double>(pipelines - 1) / static_cast<double>(count + pipelines - 1);
  const double moved = over_world(static_cast<double>(bytes), *world, Reduction::sum) / world->size() / 1e6;
  const double memory = over_world(megabytes_resident(), *world, Reduction::max);
  const auto tokens = static_cast<double>(count * length * mesh.shape().data);
  if (world->rank() == 0)
    std::printf("| %d | %ld x %ld x %ld | %.1f | %.0f | %.2f | %.0f %% | %.0f %% | %.0f |\n", world->size(), mesh.shape().data,
                pipelines, tensors, 1000.0 * step, tokens / step, moved, 100.0 * idle, 100.0 * formula, memory);
  return 0;
}
