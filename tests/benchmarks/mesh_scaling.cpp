// mesh_scaling MODEL PIPELINE TENSOR MICRO_BATCHES LENGTH STEPS: select's steps on the mesh of these ranks (data =
// ranks / (pipeline * tensor); MICRO_BATCHES of one sequence each a data rank), as one JSON object. mesh_scaling.py
// runs it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/io/model_files.h"
#include "distributed/communication/mpi_communicator.h"
#include "distributed/parallel/layer_cuts.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/select.h"

namespace {

using namespace flashmorph;

constexpr int kWarmUp = 2;

// Random tokens; the last quarter of the sequence counts.
Batch batch_of_noise(int64_t length, int64_t vocabulary) {
  Batch batch{at::randint(vocabulary, {1, length}, at::kLong), at::zeros({1, length}, at::kBool), std::nullopt};
  batch.answers_BT.slice(1, 3 * length / 4).fill_(true);
  return batch;
}

double megabytes_now() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / 1e6;
}

double most_megabytes() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_maxrss) * 1024.0 / 1e6;
}

double over(Communicator& group, double value, Reduction reduction) {
  at::Tensor all = at::full({1}, value, at::kDouble);
  group.all_reduce(all, reduction);
  return all.item<double>();
}

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

// A step's micro-batches of this rank, forward, backward, and the gates' gradients in the samples' order.
void step_of_select(const MorphableModel& model, Mesh& mesh, Pipeline& pipeline, int64_t count, int64_t length) {
  std::vector<at::Tensor> leaves, rows;
  pipeline.forward_backward({0, count}, state_shape(model, {1, length}), [&](int64_t, const States& states) {
    leaves.push_back(at::full({model.own_layers().count()}, 0.5, at::kDouble).set_requires_grad(true));
    return mix_beside_teacher(model, batch_of_noise(length, model.spec().vocabulary),
                              mixing_routes(leaves.back(), leaves.back()), states);
  });
  for (const at::Tensor& leaf : leaves) rows.push_back(leaf.grad());
  gather_in_sample_order(at::stack(rows), count * mesh.shape().data, mesh);
}

}  // namespace

int main(int argc, char** argv) {
  MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  if (argc != 7) {
    std::fprintf(stderr, "usage: mesh_scaling MODEL PIPELINE TENSOR MICRO_BATCHES LENGTH STEPS\n");
    return 2;
  }
  const std::string path = argv[1];
  const int64_t pipelines = std::atoll(argv[2]), tensors = std::atoll(argv[3]), count = std::atoll(argv[4]),
                length = std::atoll(argv[5]), steps = std::atoll(argv[6]);
  at::set_num_threads(1);
  Mesh mesh(*world, MeshShape::of(world->size(), tensors, pipelines));
  const double before = megabytes_now();
  const ModelSpec spec = ModelSpec::open(path);
  const auto layers = balanced_layers({.layers = std::vector<double>(spec.layers, 1.0)}, pipelines);
  MorphableModel model =
      MorphableModel::load(ModelFiles::open(path), spec, {mesh.tensor_rank(), tensors, at::kFloat, at::kCPU},
                           mesh.shard(), layers[mesh.pipeline_rank()], mesh.pipeline_peers());
  model.add_branches({}, 1);

  Pipeline pipeline(mesh);
  std::vector<double> seconds, idle;
  int64_t bytes = 0;
  for (int64_t step = 0; step < kWarmUp + steps; ++step) {
    world->barrier();
    const double waited_before = pipeline.seconds_waited();
    const int64_t bytes_before = mesh.bytes_moved();
    const Stopwatch watch;
    step_of_select(model, mesh, pipeline, count, length);
    const double own = watch.seconds();
    const double waited = pipeline.seconds_waited() - waited_before, whole = over(*world, own, Reduction::max);
    if (step < kWarmUp) continue;
    seconds.push_back(whole);
    idle.push_back(over(*world, waited + whole - own, Reduction::sum) /
                   (whole * world->size()));  // a rank that is done waits too
    bytes = mesh.bytes_moved() - bytes_before;
  }
  const nlohmann::json result = {
      {"ranks", world->size()},
      {"data", mesh.shape().data},
      {"pipeline", pipelines},
      {"tensor", tensors},
      {"micro_batches", count},
      {"length", length},
      {"step_ms", 1000.0 * median(seconds)},
      {"tokens_per_second", static_cast<double>(count * length * mesh.shape().data) / median(seconds)},
      {"moved_mb_a_rank", over(*world, static_cast<double>(bytes), Reduction::sum) / world->size() / 1e6},
      {"idle", median(idle)},
      {"idle_by_formula", static_cast<double>(pipelines - 1) / static_cast<double>(count + pipelines - 1)},
      {"memory_mb", over(*world, most_megabytes(), Reduction::max)},
      {"memory_of_model_mb", over(*world, most_megabytes() - before, Reduction::max)}};
  if (world->rank() == 0) std::printf("%s\n", result.dump().c_str());
  return 0;
}
