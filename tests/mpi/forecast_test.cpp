#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdio>

#include "core/rehearsal/tensor_memory.h"
#include "core/select/uniform.h"
#include "distributed/forecast/rehearsal.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/stages/align.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"

// What a forecast foresees, beside real steps: the most bytes of tensors on each rank, and what each group sends.

namespace flashmorph {
namespace {

using test::context;
using test::kTeacher;
using test::text_of;
using test::world;

constexpr int64_t kSteps = 3;  // gates start at 1, where linear branches have no backward pass: later steps take more

RunConfig config_on(const MeshShape& mesh, const std::string& more) {
  const std::string stage = "{tokens: 3072, batch_tokens: 1024, data: {lengths: 256, passkeys: 2, words: 4}}\n";
  return RunConfig::from_yaml("model: {path: " + std::string(kTeacher) +
                                  "}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\n"
                                  "parallel: {tensor: " +
                                  std::to_string(mesh.tensor) + ", pipeline: " + std::to_string(mesh.pipeline) + more +
                                  "}\nstages:\n  align: " + stage + "  select: " + stage + "  distill: " + stage +
                                  "  finetune: " + stage,
                              "test");
}

// The six meshes, by their number of ranks.
std::vector<MeshShape> meshes() {
  switch (world().size()) {
    case 1:
      return {{1, 1, 1}};
    case 2:
      return {{1, 1, 2}, {1, 2, 1}, {2, 1, 1}};
    case 4:
      return {{2, 1, 2}};
    default:
      return {{2, 2, 2}};
  }
}

TrafficByGroup sent_by(Mesh& mesh) {
  TrafficByGroup traffic;
  for (const Communicator* group : mesh.groups())
    for (const auto& [operation, entry] : group->traffic().by_operation)
      traffic[{group->name(), operation}] = {static_cast<double>(entry.calls), static_cast<double>(entry.bytes)};
  return traffic;
}

Routes spread_evenly(const ModelSpec& spec) {
  Routes routes(static_cast<size_t>(spec.layers), Route::linear());
  for (const int64_t layer : uniform_layers(spec.layers, 3)) routes[static_cast<size_t>(layer)] = Route::full();
  return routes;
}

void run_stage(const std::string& stage, MorphableModel& model, StageContext& here) {
  if (stage == "align") align(model, here);
  if (stage == "select") select_gates(model, LayerBudget::of_layers(model.layer_count(), 3), here);
  const Routes routes = spread_evenly(model.spec());
  if (stage == "distill") distill(model, model.hybrid(routes), routes, "even", here);
  if (stage == "finetune") finetune(model.hybrid(routes), routes, "even", here);
}

double mebibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

double mebibytes_resident() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_maxrss) / 1024.0;
}

void compare(const std::string& stage, const MeshShape& shape, const std::string& more) {
  TensorMemory& memory = TensorMemory::of_host();
  const RunConfig config = config_on(shape, more);
  const ModelSpec spec = ModelSpec::open(kTeacher);
  const Layout layout = layout_of(stage, config, spec, world().size());
  Mesh mesh(world(), layout.shape);
  const RankUse forecast = rehearse(stage, config, spec, layout, mesh.pipeline_rank());

  StageContext here = context(mesh, config);
  const int64_t before = memory.alive().total();
  MorphableModel model = MorphableModel::load(
      ModelFiles::open(kTeacher), spec, {mesh.tensor_rank(), shape.tensor, at::kFloat, at::kCPU}, mesh.shard(),
      layout.layers[static_cast<size_t>(mesh.pipeline_rank())], mesh.pipeline_peers());
  model.add_branches(config.mixer, config.run.seed);
  memory.start_peak();
  run_stage(stage, model, here);
  const int64_t measured = memory.peak().total() - before;

  const std::string what = stage + ", " + text_of(layout.shape) + more;
  EXPECT_NEAR(static_cast<double>(forecast.peak.total()) / static_cast<double>(measured), 1.0, 0.1) << what;
  const TrafficByGroup sent = sent_by(mesh);
  for (const auto& [operation, entry] : sent) {
    const auto found = forecast.traffic.find(operation);
    const Sent foreseen = found == forecast.traffic.end() ? Sent{} : found->second;
    EXPECT_EQ(static_cast<double>(kSteps) * foreseen.calls, entry.calls)
        << what << ": " << operation.first << " " << operation.second;
    EXPECT_EQ(static_cast<double>(kSteps) * foreseen.bytes, entry.bytes)
        << what << ": " << operation.first << " " << operation.second;
  }
  EXPECT_EQ(sent.size(), forecast.traffic.size()) << what;
  if (world().rank() == 0)
    std::printf("| %s | %ld x %ld x %ld%s | %.1f | %.1f | %+.1f %% | %.0f |\n", stage.c_str(), shape.data,
                shape.pipeline, shape.tensor, more.c_str(), mebibytes(forecast.peak.total()), mebibytes(measured),
                100.0 * (static_cast<double>(forecast.peak.total()) / static_cast<double>(measured) - 1.0),
                mebibytes_resident());
}

class ForecastBesideARun : public testing::TestWithParam<const char*> {};

TEST_P(ForecastBesideARun, MemoryWithinATenthAndTrafficToTheByte) {
  for (const MeshShape& shape : meshes()) compare(GetParam(), shape, "");
}

INSTANTIATE_TEST_SUITE_P(Stages, ForecastBesideARun, testing::Values("align", "select", "distill", "finetune"));

TEST(ForecastBesideARunThat, RecomputesAndSharesMomentsAndTokens) {
  for (const MeshShape& shape : meshes()) {
    compare("align", shape, ", sequence: true");
    compare("select", shape, ", recompute: full");
    compare("distill", shape, ", recompute: full, zero: true");
  }
}

}  // namespace
}  // namespace flashmorph
