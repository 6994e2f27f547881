#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>

#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"

// A stage that is stopped in the middle on one mesh and goes on, from its checkpoint, on another.

namespace flashmorph {
namespace {

using test::load;
using test::SharedModel;
using test::text_of;
using test::world;

constexpr int64_t kSteps = 8, kStoppedAfter = 5;

RunConfig small_run(bool zero) {
  RunConfig config = test::run_of_steps(1, kSteps, kSteps);
  config.checkpoint.every = 0;
  config.stages.distill.lr = {1e-3, 1e-4};
  config.stages.distill.parallel.zero = zero;
  config.health.straggler = 1e9;  // no warning of a busy machine
  return config;
}

struct Way {  // of laying a stage out
  MeshShape shape;
  bool zero;
};

// Each uses the first ranks; `zero` changes as well from one to the next.
std::vector<Way> ways() {
  std::vector<Way> all = {
      {{1, 1, 1}, false}, {{1, 1, 2}, true}, {{1, 2, 1}, false}, {{4, 1, 1}, true}, {{2, 2, 2}, true}};
  std::erase_if(all, [](const Way& way) { return way.shape.ranks() > world().size(); });
  return all;
}

// Asks its own process to stop after a step.
class Stopper : public StageObserver {
 public:
  explicit Stopper(int64_t step) : step_(step) {}
  void resumed(int64_t steps, int64_t) override { resumed_after = steps; }
  void stepped(const StepReport& report) override {
    if (report.step == step_) std::raise(SIGTERM);
  }
  void warn(const std::string& warning) override { ADD_FAILURE() << warning; }
  int64_t resumed_after = 0;

 private:
  int64_t step_;
};

// All numbers that a stage makes, on rank 0.
using Stage = at::Tensor (*)(const std::string& path, Mesh& mesh, const RunConfig& config, at::ScalarType dtype,
                             StageContext& context);

at::Tensor select_numbers(const std::string& path, Mesh& mesh, const RunConfig& config, at::ScalarType dtype,
                          StageContext& context) {
  const MorphableModel model = load(path, mesh, config, dtype);
  const auto [gates, cost] = select_gates(model, LayerBudget::of_layers(model.layer_count(), 2), context);
  EXPECT_EQ(cost.tokens, kSteps * 512);
  std::vector<double> numbers;
  for (const proto::GateStep& moved : gates.history()) numbers.push_back(moved.loss());
  for (const proto::GateStep& moved : gates.history())
    numbers.insert(numbers.end(), moved.alpha().begin(), moved.alpha().end());
  return at::tensor(numbers, at::kDouble);
}

at::Tensor distill_numbers(const std::string& path, Mesh& mesh, const RunConfig& config, at::ScalarType dtype,
                           StageContext& context) {
  const MorphableModel model = load(path, mesh, config, dtype);
  Routes routes(model.layer_count(), Route::linear());
  routes[1] = Route::full();
  const MorphableModel hybrid = model.hybrid(routes);
  distill(model, hybrid, routes, "test", context);
  return test::flat_global(hybrid.all_parameters(), mesh);
}

// The stage on the first ranks as this mesh, with its checkpoints in `folder`; undefined when it was stopped. The other
// ranks wait.
at::Tensor run(Stage stage, const std::string& model, const Way& way, at::ScalarType dtype,
               const std::filesystem::path& folder, int64_t stop_after, int64_t resumes_after) {
  const bool takes_part = world().rank() < way.shape.ranks();
  const auto group = world().split(takes_part ? 0 : 1, world().rank(), "part");
  at::Tensor numbers;
  if (takes_part) {
    Mesh mesh(*group, way.shape);
    const RunConfig config = small_run(way.zero);
    StopSignal stop;
    Stopper observer(group->rank() == 0 ? stop_after : 0);
    StageContext context{
        {config, test::inputs().corpus, test::inputs().passkeys, observer, stop, test::inputs().watchdog},
        mesh,
        {.folder = folder, .stage = "stage"}};
    try {
      numbers = stage(model, mesh, config, dtype, context);
      EXPECT_EQ(stop_after, 0) << "was to be stopped";
    } catch (const Stopped& stopped) {
      EXPECT_NE(std::string(stopped.what()).find("a signal asked for it; it is in " + (folder / "stage-5").string()),
                std::string::npos)
          << stopped.what();
    }
    EXPECT_EQ(observer.resumed_after, resumes_after);
  }
  world().barrier();
  return numbers;
}

void expect_the_same_on_every_pair(Stage stage, double tolerance) {
  const SharedModel model({.layers = 4});
  const test::TemporaryFolder own;
  const std::filesystem::path folders = world().broadcast_text(own.path().string(), 0);
  for (const Way& before : ways()) {
    const std::filesystem::path folder = folders / std::to_string(before.shape.ranks()) / text_of(before.shape);
    const at::Tensor expected = run(stage, model.path(), before, at::kDouble, "", 0, 0);
    run(stage, model.path(), before, at::kDouble, folder, kStoppedAfter, 0);
    for (const Way& after : ways()) {
      SCOPED_TRACE("saved on " + text_of(before.shape) + ", resumed on " + text_of(after.shape));
      const at::Tensor numbers = run(stage, model.path(), after, at::kDouble, folder, 0, kStoppedAfter);
      if (world().rank() != 0) continue;
      if (before.shape == after.shape) {
        EXPECT_TRUE(numbers.equal(expected)) << "not the same bits";
      } else {
        EXPECT_LT((numbers - expected).abs().max().item<double>(), tolerance);
      }
    }
  }
}

TEST(Resume, GatesAreTheSameOnEveryPairOfMeshes) { expect_the_same_on_every_pair(select_numbers, 1e-6); }

TEST(Resume, DistilledWeightsAreTheSameOnEveryPairOfMeshes) { expect_the_same_on_every_pair(distill_numbers, 1e-6); }

TEST(Resume, WeightsBehindBfloat16AreTheSameBits) {
  const SharedModel model({.layers = 4});
  const test::TemporaryFolder own;
  const std::filesystem::path folder = world().broadcast_text(own.path().string(), 0);
  const Way way{{std::min(world().size(), 4), 1, 1}, true};
  const at::Tensor expected = run(distill_numbers, model.path(), way, at::kBFloat16, "", 0, 0);
  run(distill_numbers, model.path(), way, at::kBFloat16, folder, kStoppedAfter, 0);
  const at::Tensor resumed = run(distill_numbers, model.path(), way, at::kBFloat16, folder, 0, kStoppedAfter);
  if (world().rank() == 0) {
    EXPECT_TRUE(resumed.equal(expected));
  }
}

}  // namespace
}  // namespace flashmorph
