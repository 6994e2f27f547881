#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/morph/state_watch.h"
#include "distributed/stages/align.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"
#include "tests/mpi/strict_communicator.h"

// What one step sends, counted by the groups themselves.

namespace flashmorph {
namespace {

using test::context;
using test::load;
using test::SharedModel;
using test::world;

constexpr int64_t kLayers = 6, kTokens = 128, kHidden = 32, kMicroBatches = 4;
constexpr int64_t kStates = kTokens * kHidden * 8;  // bytes of one micro-batch's states in float64

RunConfig one_step() { return test::run_of_steps(1, 1, 1); }

Traffic::Entry traffic(const Communicator& group, const std::string& operation) {
  const auto& all = group.traffic().by_operation;
  return all.contains(operation) ? all.at(operation) : Traffic::Entry{};
}

TEST(SelectTraffic, AMorphableAttentionTakesOneReductionForwardAndOneBackward) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = kLayers});
  const RunConfig config = one_step();
  Mesh mesh(world(), MeshShape::of(world().size(), 2));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  StageContext here = context(mesh, config);
  const int64_t before = traffic(mesh.tensor(), "all_reduce").calls,
                bytes_before = traffic(mesh.tensor(), "all_reduce").bytes;
  select_gates(model, LayerBudget::of_layers(kLayers, 3), here);

  // Forward: the embedding, then teacher and mixture, an attention each layer and a feed-forward each but the last.
  // Backward: through the mixture only, and never below the first gate.
  const int64_t mine = kMicroBatches / mesh.shape().data;
  const int64_t forward = 1 + 2 * (kLayers + kLayers - 1), backward = kLayers - 1 + kLayers - 1;
  EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").calls - before, mine * (forward + backward) + 1);
  EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").bytes - bytes_before,
            mine * (forward + backward) * kStates + mine * (kLayers + 2) * 8);  // the gates' rows, once a step
  EXPECT_EQ(traffic(mesh.data(), "all_gather").calls, 1);
  EXPECT_EQ(traffic(mesh.data(), "all_gather").bytes, mine * (kLayers + 2) * 8);
  EXPECT_EQ(traffic(mesh.data(), "all_reduce").calls, 0);
}

TEST(SelectTraffic, AMixedAttentionsShareIsOneEachWay) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = kLayers});
  Mesh mesh(world(), MeshShape::of(world().size(), 2));
  const MorphableModel model = load(small.path(), mesh, one_step(), at::kDouble);
  const at::Tensor alpha = at::full({}, 0.5, at::kDouble).set_requires_grad(true);
  const at::Tensor x = at::ones({1, 8, kHidden}, at::kDouble).set_requires_grad(true);
  const at::Tensor h = model.attend(2, x, Route::mixed(alpha), model.positions(0, 8));
  EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").calls, 1);
  h.sum().backward();
  EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").calls, 2);
}

// A step's sums and gathers over the tensor ranks, two layers, in the order in which they are begun (+) and waited for
// (-): by select, align and distill. Where the tokens are shared with an "a" when an attention has been computed.
std::vector<std::string> diaries_of_steps(bool sequence) {
  const SharedModel small({.layers = 2});
  RunConfig config = one_step();
  std::string diary;
  const auto all = test::strict_communicator(world().split(0, world().rank(), "all"), &diary);
  MeshShape shape = MeshShape::of(world().size(), world().size());
  shape.sequence = sequence;
  Mesh mesh(*all, shape);
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  const MicroBatches one{.mine = {0, 1}, .count = 1, .shape = {2, kTokens / 2}, .batch = [](int64_t) {
                           const at::Tensor answers = at::ones({2, kTokens / 2}, at::kBool);
                           return Batch{answers.to(at::kLong), answers, {}};
                         }};
  const Parameters branches = model.branch_parameters();
  const auto train_branches = [&](bool trained) {
    for (const Parameter& parameter : branches) parameter.value.set_requires_grad(trained);
  };
  const StateWatch watch([&](const MorphableModel&, int64_t, const std::string& piece, const at::Tensor&) {
    if (sequence && (piece == "full attention" || piece == "the linear branch")) diary += " a";
  });
  std::vector<std::string> diaries;
  const auto keep = [&] { diaries.push_back(std::exchange(diary, "")); };
  select_step(model, at::ones({2}, at::kDouble), one, config.stages.select, mesh);
  keep();
  train_branches(true);
  align_step(model, one, config.stages.align, mesh);
  keep();
  train_branches(false);
  const Routes routes = {Route::full(), Route::linear()};
  const MorphableModel hybrid = model.hybrid(routes);
  distill_step(model, hybrid, routes, one, config.stages.distill, mesh);
  keep();
  return diaries;
}

// While one arrives, another part of the step is computed.
TEST(Overlap, SumsArriveWhileTheOtherPassComputes) {
  if (world().size() == 1) return;
  const std::vector<std::string> diaries = diaries_of_steps(/*sequence=*/false);
  // Mixture and teacher in turns, both behind the embedding; the last layer needs no feed-forward. Then the mixture's
  // way back, which has nobody beside it.
  EXPECT_EQ(diaries[0], "+1 -1 +2 +3 -2 +4 -3 +5 -4 +6 -5 +7 -6 -7 +8 -8 +9 -9");
  // In each layer the teacher's attention, the branch and the teacher's feed-forward.
  EXPECT_EQ(diaries[1], "+10 -10 +11 +12 -11 +13 -12 -13 +14 +15 -14 -15");
  // Hybrid and teacher in turns behind their embeddings; then the hybrid's way back.
  EXPECT_EQ(diaries[2],
            "+16 -16 +17 -17 +18 +19 -18 +20 -19 +21 -20 +22 -21 +23 -22 +24 -23 +25 -24 -25 "
            "+26 -26 +27 -27 +28 -28 +29 -29");
}

// Where the tokens are shared each sublayer has a gather before it and a sum behind it. One pass waits for its sum and
// begins its gather in the middle of the other's sublayer.
TEST(Overlap, GathersArriveWhileTheOtherPassComputes) {
  if (world().size() == 1) return;
  const std::vector<std::string> diaries = diaries_of_steps(/*sequence=*/true);
  EXPECT_EQ(diaries[0],
            "+1 -1 +2 -2 +3 a a +4 -3 -4 +5 a +6 -5 -6 +7 +8 -7 -8 +9 +10 -9 -10 +11 a a +12 -11 -12 a +13 -13 "
            "+14 -14 +15 -15 +16 -16 +17 -17 +18 -18");
  // In each layer the gather, the teacher's attention, inside the branch the feed-forward's gather, the branch, inside
  // the feed-forward the gather of the error's gradient, and the feed-forward.
  EXPECT_EQ(diaries[1],
            "+19 -19 +20 -20 a +21 -21 +22 a +23 -22 -23 +24 +25 -24 -25 "
            "+26 -26 a +27 -27 a +28 -28 +29 -29");
  EXPECT_EQ(diaries[2],
            "+30 -30 +31 -31 +32 -32 +33 a +34 -33 -34 +35 a +36 -35 -36 +37 +38 -37 -38 +39 +40 -39 -40 "
            "+41 a +42 -41 -42 +43 a +44 -43 -44 +45 +46 -45 -46 +47 -47 +48 -48 +49 -49 "
            "+50 -50 +51 -51 +52 -52 +53 -53 +54 -54 +55 -55 +56 -56 +57 -57 +58 -58");
}

TEST(Overlap, APipelinesNextRankHasTheTeachersStatesBeforeABranchLearns) {
  const SharedModel small({.layers = kLayers});
  const RunConfig config = one_step();
  Mesh mesh(world(), MeshShape::of(world().size(), 1, world().size()));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  for (const Parameter& parameter : model.branch_parameters()) parameter.value.set_requires_grad(true);
  const Batch batch{at::ones({1, kTokens}, at::kLong), at::zeros({1, kTokens}, at::kBool), {}};
  at::Tensor loss = at::zeros({}, at::kDouble);
  Pipeline(mesh).stream({0, 1}, state_shape(model, {1, kTokens}),
                        [&](int64_t, const at::Tensor& x, const PassOn& pass_on) {
                          int64_t learned = 0, learned_before = -1;
                          const StateWatch watch([&](const MorphableModel&, int64_t, const std::string& piece,
                                                     const at::Tensor&) { learned += piece == "the linear branch"; });
                          align_micro_batch(model, batch, x, 1, loss, [&](const at::Tensor& states) {
                            learned_before = learned;
                            pass_on(states);
                          });
                          EXPECT_EQ(learned, model.own_layers().count());
                          EXPECT_EQ(learned_before, model.has_head() ? learned : 0) << "nobody waits for the last rank";
                        });
}

TEST(SequenceTraffic, AMixedAttentionGathersOnceAndReducesOnceEachWay) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = kLayers});
  MeshShape shape = MeshShape::of(world().size(), 2);
  shape.sequence = true;
  Mesh mesh(world(), shape);
  const MorphableModel model = load(small.path(), mesh, one_step(), at::kDouble);
  const at::Tensor alpha = at::full({}, 0.5, at::kDouble).set_requires_grad(true);
  const at::Tensor x = at::ones({1, 4, kHidden}, at::kDouble).set_requires_grad(true);
  const at::Tensor h = model.attend(2, x, Route::mixed(alpha), model.positions(0, 8));
  EXPECT_EQ(h.sizes(), x.sizes());
  for (const int64_t ways : {1, 2}) {
    EXPECT_EQ(traffic(mesh.tensor(), "all_gather").calls, ways);
    EXPECT_EQ(traffic(mesh.tensor(), "reduce_scatter").calls, ways);
    EXPECT_EQ(traffic(mesh.tensor(), "reduce_scatter").bytes, ways * 8 * kHidden * 8);
    if (ways == 1) h.sum().backward();
  }
  EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").calls, 0);
}

TEST(SequenceTraffic, TakesThePlaceOfEveryReductionAndPipelinesCarryTheShare) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = kLayers});
  const RunConfig config = one_step();
  for (const int64_t pipelines : {1, 2}) {
    if (world().size() % (2 * pipelines) != 0) continue;
    MeshShape shape = MeshShape::of(world().size(), 2, pipelines);
    shape.sequence = true;
    Mesh mesh(world(), shape);
    const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
    StageContext here = context(mesh, config);
    select_gates(model, LayerBudget::of_layers(kLayers, 3), here);
    const int64_t mine = kMicroBatches / shape.data;
    if (pipelines == 2) {
      EXPECT_EQ(traffic(mesh.pipeline(), "send").bytes, mine * kStates / 2 * (mesh.pipeline_rank() == 0 ? 2 : 1));
      continue;
    }
    // As in the test above, each reduction a gather and a reduce-scatter; backward the two change places, and the
    // lowest attention's output is gathered although its input needs no gradient.
    const int64_t blocks = kLayers + kLayers - 1;
    EXPECT_EQ(traffic(mesh.tensor(), "all_gather").calls, mine * (2 * blocks + blocks));
    EXPECT_EQ(traffic(mesh.tensor(), "all_gather").bytes, mine * (2 * blocks + blocks) * kStates / 2);
    EXPECT_EQ(traffic(mesh.tensor(), "reduce_scatter").calls, mine * (1 + 2 * blocks + blocks - 1));
    EXPECT_EQ(traffic(mesh.tensor(), "reduce_scatter").bytes, mine * (1 + 2 * blocks + blocks - 1) * kStates);
    EXPECT_EQ(traffic(mesh.tensor(), "all_reduce").calls, mine + 1) << "what the attention adds, and the gates' rows";
  }
}

TEST(ZeroTraffic, GradientsAreScatteredAndWeightsGathered) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = 2});
  RunConfig config = one_step();
  config.stages.distill.parallel.zero = true;
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  const Routes routes = {Route::full(), Route::linear()};
  const MorphableModel hybrid = model.hybrid(routes);
  StageContext here = context(mesh, config);
  distill(model, hybrid, routes, "test", here);
  int64_t elements = 0;
  for (const Parameter& parameter : hybrid.all_parameters()) elements += parameter.value.numel();
  const int64_t stretch = (elements + world().size() - 1) / world().size();
  EXPECT_EQ(traffic(mesh.data(), "reduce_scatter").calls, 1);
  EXPECT_EQ(traffic(mesh.data(), "reduce_scatter").bytes, stretch * world().size() * 8);
  EXPECT_EQ(traffic(mesh.data(), "all_gather").calls, 1);
  EXPECT_EQ(traffic(mesh.data(), "all_gather").bytes, stretch * 8);
  EXPECT_EQ(traffic(mesh.data(), "all_reduce").bytes, 2 * 8) << "the loss and the norm";
}

TEST(PipelineTraffic, TeacherAndMixtureGoForwardTheMixturesGradientComesBack) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = kLayers});
  const RunConfig config = one_step();
  Mesh mesh(world(), MeshShape::of(world().size(), 1, 2));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  StageContext here = context(mesh, config);
  select_gates(model, LayerBudget::of_layers(kLayers, 3), here);
  const int64_t mine = kMicroBatches / mesh.shape().data;
  const bool is_first = mesh.pipeline_rank() == 0;
  EXPECT_EQ(traffic(mesh.pipeline(), "send").calls, mine * (is_first ? 2 : 1)) << "the teacher's go ahead";
  EXPECT_EQ(traffic(mesh.pipeline(), "send").bytes, mine * kStates * (is_first ? 2 : 1));
  EXPECT_EQ(traffic(mesh.pipeline(), "receive").bytes, mine * kStates * (is_first ? 1 : 2));
  EXPECT_EQ(traffic(mesh.pipeline(), "all_reduce").bytes, 8 * (3 + 2 * kLayers))
      << "the totals, then all layers' gradients and gates";
}

}  // namespace
}  // namespace flashmorph
