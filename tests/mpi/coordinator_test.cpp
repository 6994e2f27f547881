#include "distributed/coordinator/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "core/base/bad_input.h"
#include "distributed/parallel/stage_layouts.h"
#include "tests/mpi/run_on_meshes.h"

namespace flashmorph {
namespace {

using test::world;

// Changes what this rank holds of the plans as soon as they are made.
class Tampering : public StageObserver {
 public:
  explicit Tampering(bool tampers) : tampers_(tampers) {}
  void watch(proto::PlanSet& plans) { plans_ = &plans; }
  void finished(const std::string& stage, double) override {
    if (tampers_ && stage == "discretize") plans_->mutable_plans(0)->set_full_layers(0, 1);
    finished_.insert(stage);
  }
  const std::set<std::string>& stages() const { return finished_; }

 private:
  bool tampers_;
  proto::PlanSet* plans_ = nullptr;
  std::set<std::string> finished_;
};

TEST(Coordinator, ARankWithOtherPlansStopsAllBeforeTheNextStage) {
  if (world().size() == 1) return;
  const test::TemporaryFolder folder;
  const std::string data = "data: {lengths: 64, passkeys: 1, words: 2}";
  const RunConfig config =
      RunConfig::from_yaml("run: {name: run, dir: " + world().broadcast_text(folder.path().string(), 0) +
                               "}\n"
                               "model: {path: " +
                               test::kTeacher +
                               "}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\n"
                               "stages:\n  align: {tokens: 256, batch_tokens: 256, " +
                               data +
                               "}\n"
                               "  select: {method: uniform, tokens: 256, batch_tokens: 256, " +
                               data + "}\n",
                           "test");
  RunFolder run(config);
  on_all_ranks(world(), [&] {
    if (world().rank() == 0) run.open(config, {.teacher = "weights"});
  });
  PlacedModel placed(world(), config, ModelSpec::open(test::kTeacher), ModelFiles::open(test::kTeacher), at::kFloat);
  const int last = world().size() - 1;
  Tampering observer(world().rank() == last);
  const proto::LayerLatency not_asked_for;
  RunUnderWay under_way{
      {config, test::inputs().corpus, test::inputs().passkeys, observer, test::inputs().stop, test::inputs().watchdog},
      not_asked_for,
      world(),
      placed,
      run};
  observer.watch(under_way.plans);

  std::string message;
  try {
    run_stages(under_way);
  } catch (const BadInput& fault) {
    message = fault.what();
  }
  EXPECT_THAT(message, testing::HasSubstr("plan.json: rank " + std::to_string(last) +
                                          " holds other plans than rank 0 before evaluate teacher: their hash is "));
  for (const std::string& theirs : gather_text(message, world())) EXPECT_EQ(theirs, message);
  EXPECT_THAT(observer.stages(), testing::ElementsAre("align", "discretize"));
}

ModelFiles teacher_files(const std::function<void()>& before_each_read) {
  ModelFiles files = ModelFiles::open(test::kTeacher);
  files.before_each_read(before_each_read);
  return files;
}

// The teacher, to be placed for a run with these further settings.
struct Teacher {
  Teacher(const std::string& settings, const std::function<void()>& before_each_read)
      : config(RunConfig::from_yaml(std::string("model: {path: ") + test::kTeacher +
                                        "}\nbudget: {full_layers: 3}\ndata: {text: text}\n" + settings,
                                    "test")),
        files(teacher_files(before_each_read)) {}
  void place(const std::string& stage) { placed.place(layout_of(stage, config, spec, world().size())); }

  RunConfig config;
  ModelSpec spec = ModelSpec::open(test::kTeacher);
  ModelFiles files;
  PlacedModel placed{world(), config, spec, files, at::kFloat};
};

// The last rank is asked to stop while it reads its fifth tensor.
TEST(PlacedModel, ARankThatIsAskedToStopBetweenTensorsStopsAll) {
  int reads = 0;
  Teacher teacher("stages: {align: {tokens: 8K}, select: {tokens: 8K}}\n", [&] {
    if (++reads == 5 && world().rank() == world().size() - 1)
      throw Stopped("stopped while loading: a signal asked for it");
  });
  std::string message;
  try {
    teacher.place("align");
  } catch (const Stopped& stopped) {
    message = stopped.what();
  }
  EXPECT_EQ(message, "stopped while loading: a signal asked for it");
  if (world().rank() == world().size() - 1) {
    EXPECT_EQ(reads, 5);
  }
}

// A stage that shares the tokens and one that does not lie on the same pieces.
TEST(PlacedModel, IsReadOnceForMeshesOfTheSamePieces) {
  int reads = 0;
  Teacher teacher(
      "parallel: {tensor: 2, sequence: true}\n"
      "stages: {align: {tokens: 8K}, select: {tokens: 8K}, distill: {parallel: {tensor: 1}}}\n",
      [&] { ++reads; });
  PlacedModel& placed = teacher.placed;
  const auto reads_of = [&](const std::string& stage) {
    reads = 0;
    teacher.place(stage);
    return reads;
  };
  EXPECT_GT(reads_of("align"), 0);
  placed.keep_branches();
  EXPECT_TRUE(placed.model().shard().sequence_parallel());
  EXPECT_EQ(reads_of("evaluate"), 0);
  EXPECT_FALSE(placed.model().shard().sequence_parallel());
  EXPECT_FALSE(placed.mesh().shape().sequence);
  EXPECT_EQ(reads_of("select"), 0);
  EXPECT_TRUE(placed.model().shard().sequence_parallel());
  EXPECT_TRUE(placed.has_trained_branches());
  EXPECT_GT(reads_of("distill"), 0);
  EXPECT_FALSE(placed.has_trained_branches());
}

}  // namespace
}  // namespace flashmorph
