#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <tuple>

#include "core/io/model_files.h"
#include "core/mixer/lightning.h"
#include "core/model/attention.h"
#include "core/ops/quantised.h"
#include "core/select/by_gates.h"
#include "distributed/measure/evaluate.h"
#include "distributed/stages/align.h"
#include "distributed/stages/frozen_in_float8.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"

// The same stage on every mesh of these ranks and on one rank alone.

namespace flashmorph {
namespace {

using test::context;
using test::every_mesh_and_sequence;
using test::inputs;
using test::kTeacher;
using test::load;
using test::made_by_one_rank;
using test::relative_error;
using test::SharedModel;
using test::text_of;
using test::world;

RunConfig small_run(int64_t select_steps = 20) {
  RunConfig config = test::run_of_steps(4, select_steps, 5);
  DistillSection& distill = config.stages.distill;
  distill.lr = {1e-3, 1e-4};
  static_cast<TrainingSection&>(config.stages.finetune) = distill;
  config.stages.finetune.tokens = 1024;
  EvaluateSection& evaluate = config.stages.evaluate;
  evaluate.lengths = {128};
  evaluate.passkeys = 2;
  evaluate.words = 4;
  evaluate.samples = 6;
  evaluate.greedy_samples = 2;
  evaluate.perplexity_tokens = 1024;
  evaluate.perplexity_length = 128;
  return config;
}

// Loss, price and gates of every step, then the gates that count.
at::Tensor gates_of(const MorphableModel& model, Mesh& mesh, const RunConfig& config) {
  StageContext here = context(mesh, config);
  const proto::GateSnapshot gates = select_gates(model, LayerBudget::of_layers(model.layer_count(), 3), here).first;
  int decided = gates.history_size() - 1;
  if (!config.stages.select.own.of<GateSettings>().has_penalty())
    while (decided > 0 && gates.history(decided).cost() < 3.0 - 1e-9) --decided;
  EXPECT_TRUE(std::ranges::equal(gates.alpha(), gates.history(decided).alpha())) << "the last that cost the budget";
  std::vector<double> numbers;
  for (const proto::GateStep& moved : gates.history()) {
    numbers.push_back(moved.loss());
    numbers.push_back(moved.price());
    numbers.insert(numbers.end(), moved.alpha().begin(), moved.alpha().end());
  }
  numbers.insert(numbers.end(), gates.alpha().begin(), gates.alpha().end());
  return at::tensor(numbers, at::kDouble);
}

std::vector<int64_t> kept_by(const at::Tensor& numbers, int64_t layers) {
  const double* end = numbers.data_ptr<double>() + numbers.numel();
  return best_layers({end - layers, end}, LayerBudget::of_layers(layers, 3));
}

// Steps of four short sequences: the teacher's twelve layers take their time.
RunConfig short_select(int64_t steps) {
  return RunConfig::from_yaml(
      "model: {path: unused}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\nstages:\n"
      "  align: {tokens: 256}\n"
      "  select: {tokens: " +
          std::to_string(256 * steps) + ", batch_tokens: 256, data: {lengths: 64, passkeys: 1, words: 2}}\n",
      "test");
}

void expect_same_gates(const std::string& path, const RunConfig& config, at::ScalarType dtype, double tolerance) {
  const at::Tensor expected =
      made_by_one_rank([&](Mesh& one) { return gates_of(load(path, one, config, dtype), one, config); });
  const int64_t layers = ModelSpec::open(path).layers;
  for (const MeshShape& shape : every_mesh_and_sequence()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MorphableModel model = load(path, mesh, config, dtype);
    const at::Tensor numbers = gates_of(model, mesh, config);
    if (shape.pipeline * shape.tensor == 1) {
      EXPECT_TRUE(numbers.equal(expected)) << "the data size changed a bit";
    } else {
      EXPECT_TRUE(at::allclose(numbers, expected, /*rtol=*/tolerance, /*atol=*/tolerance));  // gates may be 0
    }
    EXPECT_EQ(kept_by(numbers, layers), kept_by(expected, layers));
    for (const Parameter& parameter : model.all_parameters()) {
      EXPECT_FALSE(parameter.value.requires_grad()) << parameter.name;
      EXPECT_FALSE(parameter.value.grad().defined()) << parameter.name;
    }
  }
}

TEST(Stages, TheTeachersGatesAreTheSameOnEveryMesh) { expect_same_gates(kTeacher, short_select(8), at::kFloat, 1e-5); }

TEST(Stages, TheTeachersGatesInDoublePrecisionAreTheSameOnEveryMesh) {
  expect_same_gates(kTeacher, short_select(4), at::kDouble, 1e-10);
}

// Odd numbers of layers, and more tensor ranks than kv heads.
TEST(Stages, ASmallModelsGatesAreTheSameOnEveryMesh) {
  const SharedModel small({.layers = 5, .head_dim = 8});
  expect_same_gates(small.path(), small_run(8), at::kDouble, 1e-10);
}

TEST(Stages, GatesUnderThePapersPenaltyAreTheSameOnEveryMesh) {
  RunConfig config = small_run(6);
  config.stages.select.own.of<GateSettings>().objective = "paper";
  config.stages.select.own.of<GateSettings>().gate_penalty = 1.0;
  const SharedModel small({.layers = 5, .head_dim = 8});
  expect_same_gates(small.path(), config, at::kDouble, 1e-10);
}

// Eager float64 PyTorch: tests/golden/make_stages.py.
TEST(Stages, GatesUnderAFallingBudgetAreTheReferences) {
  const std::string file = "tests/golden/stages.safetensors";
  const auto golden = SafetensorsFile::open(file);
  const Batch batch = {golden->tensor("tokens").to(at::kLong), golden->tensor("answers").to(at::kBool), {}};
  const double answers = batch.answers_BT.sum().item<double>();
  const at::Tensor expected = golden->tensor("head.falling_gates"), prices = golden->tensor("head.gate_prices");
  RunConfig config = small_run();
  config.stages.select.tokens = config.stages.select.batch_tokens * expected.size(0);
  Mesh mesh(world(), {.data = world().size()});
  const MorphableModel model = load("tests/golden/families/qwen3", mesh, config, at::kDouble);
  read_into(model.branch_parameters(), ModelFiles::open_file(file), model.placement());
  const auto gates = open_gates(model, mesh, LayerBudget::of_layers(2, 1), config.stages.select);
  for (int64_t step = 0; step < expected.size(0); ++step) {
    const at::Tensor alpha = gates->alpha().clone().set_requires_grad(true);
    mix_beside_teacher(model, batch, mixing_routes(alpha, alpha), {}, ErrorOf::attention).loss.backward();
    const PricedGates moved = gates->step(alpha.grad() / answers, /*learning_rate=*/0.1, step);
    for (int64_t l = 0; l < 2; ++l) EXPECT_NEAR(moved.gates[l], expected[step][l].item<double>(), 1e-9) << step;
    EXPECT_NEAR(moved.price, prices[step].item<double>(), 1e-6) << step;
  }
}

TEST(Stages, AFallingBudgetHasNoUnitOfError) {
  const SharedModel small({.layers = 5});
  const RunConfig config = small_run(4);
  Mesh mesh(world(), {.data = world().size()});
  const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
  const auto one = open_gates(model, mesh, LayerBudget::of_layers(5, 3), config.stages.select);
  const auto thousandfold = open_gates(model, mesh, LayerBudget::of_layers(5, 3), config.stages.select);
  for (int64_t step = 0; step < 4; ++step) {
    const at::Tensor gradient = at::tensor({-0.1, -3.0, 0.2, -0.7, -1.5}, at::kDouble) * (step + 1);
    const PricedGates moved = one->step(gradient, 0.05, step), same = thousandfold->step(1000.0 * gradient, 0.05, step);
    for (size_t l = 0; l < 5; ++l) EXPECT_NEAR(moved.gates[l], same.gates[l], 1e-12);
    EXPECT_NEAR(same.price, 1000.0 * moved.price, 1e-6);
  }
}

TEST(Stages, SelectEndsWhenItsPickHasSettled) {
  RunConfig config = small_run(12);
  const SharedModel small({.layers = 5});
  Mesh mesh(world(), MeshShape::of(world().size(), /*tensor=*/world().size() > 4 ? 2 : 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
  const auto select = [&](int64_t window) {
    config.stages.select.own.of<GateSettings>().stop = window;
    StageContext here = context(mesh, config);
    return select_gates(model, LayerBudget::of_layers(5, 3), here);
  };
  const auto [whole, all] = select(0);
  const auto [ended, some] = select(2);
  ASSERT_LT(ended.history_size(), 12);
  EXPECT_EQ(some.tokens, 512 * ended.history_size());
  EXPECT_EQ(all.tokens, 512 * 12);
  for (int step = 0; step < ended.history_size(); ++step)
    EXPECT_TRUE(std::ranges::equal(ended.history(step).alpha(), whole.history(step).alpha()));
}

// With several tensor or pipeline ranks a replica, too: all replicas of the mesh, then each of them alone.
TEST(Stages, GatesAreTheSameBitsForAnyNumberOfReplicas) {
  const RunConfig config = small_run(5);
  const SharedModel small({.layers = 5});
  for (const MeshShape& shape : every_mesh_and_sequence()) {
    if (shape.data == 1 || shape.data == shape.ranks()) continue;
    SCOPED_TRACE(text_of(shape));
    const auto gates = [&](Mesh& mesh) { return gates_of(load(small.path(), mesh, config, at::kFloat), mesh, config); };
    Mesh all(world(), shape);
    const at::Tensor together = gates(all);
    const auto replica = world().split(static_cast<int>(all.data_rank()), world().rank(), "one replica");
    MeshShape alone = shape;
    alone.data = 1;
    Mesh one(*replica, alone);
    EXPECT_TRUE(gates(one).equal(together));
  }
}

TEST(Stages, AlignedBranchesAreTheSameOnEveryMesh) {
  RunConfig config = small_run();
  const SharedModel small({.layers = 5});
  for (const auto& [kind, norm, init] : {std::tuple("lightning", "head", "default"),
                                         {"lightning", "hidden", "default"},
                                         {"gla", "head", "data"},
                                         {"gated_delta_net", "head", "data"}}) {
    config.mixer.kind = kind;
    config.mixer.own.of<LightningSettings>().output_norm = norm;
    config.mixer.init = init;
    const auto branches = [&](Mesh& mesh) {
      MorphableModel model = load(small.path(), mesh, config, at::kDouble);
      StageContext here = context(mesh, config);
      align(model, here);
      return test::flat_global(model.branch_parameters(), mesh);
    };
    const at::Tensor expected = made_by_one_rank(branches);
    for (const MeshShape& shape : every_mesh_and_sequence()) {
      SCOPED_TRACE(text_of(shape) + ", " + kind + ", norm over " + norm);
      Mesh mesh(world(), shape);
      EXPECT_LT(test::relative_error(expected, branches(mesh)), 1e-9);
    }
  }
}

TEST(Stages, DecaysStartFromHowFarTheTeacherLooksBack) {
  RunConfig config = small_run();
  config.mixer.kind = "gated_delta_net";
  const SharedModel small({.layers = 2});
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  const Batch batch = batch_of({Sample{std::vector<int32_t>{5, 9, 2, 7, 7, 1, 30, 4}, {}}});
  start_decays(model, batch, {});
  const Positions positions = model.positions(0, 8);
  at::Tensor x = model.embed(batch.tokens_BT);
  for (int64_t l = 0; l < 2; ++l) {
    const at::Tensor distance =
        attention_distance(model.normed_input(l, x), *model.layer(l).attention, model.spec(), positions);
    for (const Parameter& parameter : model.layer(l).branch->parameters())
      if (parameter.name.ends_with("dt_bias")) {
        EXPECT_LT(test::relative_error(std::log(2.0) / distance, (1.0 + parameter.value.exp()).log()), 1e-12) << l;
      }
    x = model.feed_forward(l, model.attend(l, x, Route::full(), positions));
  }
}

// Weights after distill, then finetune, then what evaluate measures of them (on a mesh that keeps the tokens together,
// as it always has).
at::Tensor trained_and_measured(const std::string& path, const RunConfig& config, Mesh& mesh,
                                const Corpus& corpus = test::inputs().corpus) {
  const MorphableModel model = load(path, mesh, config, at::kDouble);
  Routes routes(model.layer_count(), Route::linear());
  routes[1] = routes[3] = Route::full();
  const MorphableModel hybrid = model.hybrid(routes);
  StageContext here = context(mesh, config, corpus);
  distill(model, hybrid, routes, "test", here);
  finetune(hybrid, routes, "test", here);
  for (const Parameter& parameter : hybrid.all_parameters())
    EXPECT_FALSE(parameter.value.requires_grad()) << parameter.name;
  const at::Tensor weights = test::flat_global(hybrid.all_parameters(), mesh);
  if (mesh.shape().sequence) return weights;
  const proto::Measurement measured = evaluate(hybrid, routes, "test", "finetune", here);
  const proto::RecallCounts &forced = measured.recall(0).teacher_forced(), &greedy = measured.recall(0).greedy();
  EXPECT_EQ(forced.words(), 6 * 2 * 4);
  EXPECT_EQ(greedy.answers(), 2 * 2);
  return at::cat({weights, at::tensor({measured.perplexity(), 1.0 + static_cast<double>(forced.right_words()),
                                       1.0 + static_cast<double>(greedy.right_words())},
                                      at::kDouble)});
}

// Of weights and measures, or of weights alone.
double error_of(const at::Tensor& numbers, const at::Tensor& expected) {
  return test::relative_error(expected.narrow(0, 0, numbers.numel()), numbers);
}

TEST(Stages, DocumentsKeptApartAreTheSameOnEveryMesh) {
  const test::TemporaryFolder folder;
  std::ofstream lines(folder.path() / "lines.jsonl");
  for (int document = 0; document < 1000; ++document)
    lines << "{\"text\": \"" << document
          << (document % 3 == 0 ? " short" : " a document of some more words than that one") << "\\n\"}\n";
  lines.close();
  const Corpus corpus =
      Corpus::open({.jsonl = (folder.path() / "lines.jsonl").string()}, test::inputs().tokenizer, 256);
  const RunConfig config = small_run();
  const SharedModel small({.layers = 5});
  const auto train = [&](Mesh& mesh) { return trained_and_measured(small.path(), config, mesh, corpus); };
  const at::Tensor expected = made_by_one_rank(train);
  for (const MeshShape& shape : every_mesh_and_sequence()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    EXPECT_LT(error_of(train(mesh), expected), 1e-9);
  }
}

TEST(Stages, TrainedHybridsAndTheirMeasureAreTheSameOnEveryMesh) {
  const RunConfig config = small_run();
  for (const bool tied : {true, false}) {
    const SharedModel small({.layers = 5, .tied = tied});
    const auto train = [&](Mesh& mesh) { return trained_and_measured(small.path(), config, mesh); };
    const at::Tensor expected = made_by_one_rank(train);
    for (const MeshShape& shape : every_mesh_and_sequence()) {
      SCOPED_TRACE(text_of(shape) + (tied ? ", tied" : ", untied"));
      Mesh mesh(world(), shape);
      EXPECT_LT(error_of(train(mesh), expected), 1e-9);
    }
  }
}

TEST(Stages, ZeroRecomputeAndAccumulationChangeNoWeight) {
  const RunConfig plain = small_run();
  const SharedModel small({.layers = 5});
  const at::Tensor expected =
      made_by_one_rank([&](Mesh& mesh) { return trained_and_measured(small.path(), plain, mesh); });
  RunConfig config = plain;
  for (TrainingSection* section :
       std::initializer_list<TrainingSection*>{&config.stages.distill, &config.stages.finetune}) {
    section->parallel.zero = true;
    section->parallel.recompute = "full";
  }
  for (const MeshShape& shape : every_mesh_and_sequence()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    EXPECT_LT(error_of(trained_and_measured(small.path(), config, mesh), expected), 1e-9);
  }
  config.stages.distill.micro_batch_tokens = config.stages.finetune.micro_batch_tokens = 512 / world().size();
  if (world().size() <= 4) {  // other micro-batches, of the same samples
    Mesh mesh(world(), MeshShape::of(world().size(), 1));
    EXPECT_LT(error_of(trained_and_measured(small.path(), config, mesh), expected), 1e-9);
  }
}

// The teacher's own weights after 3 steps of distill: of a plain run on one rank, and on every mesh with what must not
// change them. (The small model above does without it, too.)
void expect_same_distilled_teacher(at::ScalarType dtype, double lr, double tolerance) {
  RunConfig plain = RunConfig::from_yaml(
      "model: {path: unused}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\nstages:\n"
      "  align: {tokens: 256}\n  select: {tokens: 1024}\n"
      "  distill: {tokens: 768, batch_tokens: 256, data: {lengths: 32, passkey_share: 0}}\n",
      "test");
  plain.stages.distill.lr = {lr, lr};
  RunConfig frugal = plain, accumulating = plain;
  frugal.stages.distill.parallel.zero = true;
  frugal.stages.distill.parallel.recompute = "full";
  accumulating.stages.distill.micro_batch_tokens = 64;  // two sequences at a time
  const auto distilled = [&](Mesh& mesh, const RunConfig& config) {
    const MorphableModel teacher = load(kTeacher, mesh, config, dtype);
    Routes routes(teacher.layer_count(), Route::linear());
    routes[2] = routes[6] = routes[10] = Route::full();
    const MorphableModel hybrid = teacher.hybrid(routes);
    StageContext here = context(mesh, config);
    distill(teacher, hybrid, routes, "test", here);
    return test::flat_global(hybrid.all_parameters(), mesh);
  };
  const at::Tensor expected = made_by_one_rank([&](Mesh& mesh) { return distilled(mesh, plain); });
  for (const MeshShape& shape : every_mesh_and_sequence()) {
    Mesh mesh(world(), shape);
    for (const RunConfig* config : std::initializer_list<const RunConfig*>{&frugal, &accumulating}) {
      if (config == &accumulating && shape.pipeline * shape.tensor > 1) continue;
      SCOPED_TRACE(text_of(shape) + (config == &frugal ? ", ZeRO and recompute" : ", accumulating"));
      EXPECT_LT(test::relative_error(expected, distilled(mesh, *config)), tolerance);
    }
  }
}

// AdamW's first steps are nearly the gradients' signs: one that is 0 but for float32's rounding moves its weight by the
// learning rate either way.
TEST(Stages, TheDistilledTeacherIsTheSameOnEveryMesh) { expect_same_distilled_teacher(at::kFloat, 1e-5, 1e-5); }
TEST(Stages, TheDistilledTeacherInDoublePrecisionIsTheSameOnEveryMesh) {
  expect_same_distilled_teacher(at::kDouble, 1e-3, 1e-10);
}

TEST(Stages, RecomputedGatesAreTheSameBits) {
  RunConfig config = small_run(3);
  const SharedModel small({.layers = 5});
  Mesh mesh(world(), MeshShape::of(world().size(), world().size() % 2 == 0 ? 2 : 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  const at::Tensor kept = gates_of(model, mesh, config);
  config.stages.select.parallel.recompute = "full";
  EXPECT_TRUE(gates_of(model, mesh, config).equal(kept));
}

// What pulls at the gates of a step's mixture, halfway between both attentions, and the loss.
at::Tensor pulls_at_gates(Mesh& mesh, const RunConfig& config) {
  const MorphableModel model = load(kTeacher, mesh, config, at::kFloat);
  const SampleStream data(inputs().corpus, inputs().passkeys, config.stages.select, /*seed=*/1, "select");
  const int64_t count = data.micro_batches(0);
  const MicroBatches batches{.mine = local_micro_batches(count, mesh),
                             .count = count,
                             .shape = data.micro_batch_shape(0),
                             .batch = [&](int64_t index) { return data.micro_batch(0, index); }};
  const at::Tensor halfway = at::full({model.layer_count()}, 0.5, at::kDouble);
  at::Tensor pulls;
  {
    const FrozenInFloat8 in_float8({{model, "", /*mixes_attention=*/true}}, config.device);
    const StepResult found = select_step(model, halfway, batches, config.stages.select, mesh);
    pulls = at::cat({at::stack(found.gradients), at::full({1}, found.loss, at::kDouble)});
  }
  for (const Parameter& parameter : model.all_parameters())
    EXPECT_EQ(QuantisedMatrices::of(parameter.value), nullptr) << parameter.name << " is still in float8";
  return pulls;
}

// A tensor rank's part of a row has a scale of its own: other numbers are rounded, none by more.
TEST(Stages, PullsByFrozenProjectionsInFloat8AreNearTheExactOnesOnEveryMesh) {
  RunConfig config = short_select(1);
  const auto by_one_rank = [&] { return made_by_one_rank([&](Mesh& one) { return pulls_at_gates(one, config); }); };
  const at::Tensor exact = by_one_rank();
  config.device.frozen_dtype = "fp8";
  const at::Tensor expected = by_one_rank();
  for (const int64_t tensor : {1, 2}) {
    Mesh mesh(world(), MeshShape::of(world().size(), world().size() > 4 ? 2 : tensor));
    const at::Tensor pulls = pulls_at_gates(mesh, config);
    EXPECT_EQ(pulls.equal(expected), mesh.shape().tensor == 1) << "the data size changes no bit";
    EXPECT_GT(relative_error(exact, pulls), 1e-4) << "nothing was rounded";
    EXPECT_LT(relative_error(exact, pulls), 0.05);
    config.stages.select.parallel.recompute = "full";
    EXPECT_TRUE(pulls_at_gates(mesh, config).equal(pulls)) << "recomputed";
    config.stages.select.parallel.recompute = "none";
  }
}

}  // namespace
}  // namespace flashmorph
