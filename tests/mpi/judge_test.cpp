#include "distributed/measure/judge.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <stdexcept>

#include "core/base/endings.h"
#include "core/eval/recall.h"
#include "distributed/measure/judged_sets.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"

namespace flashmorph {
namespace {

using test::every_mesh;
using test::load;
using test::made_by_one_rank;
using test::SharedModel;
using test::text_of;
using test::world;

constexpr int64_t kLayers = 4;
constexpr int64_t kSamples = 10;

RunConfig small_run() {
  return RunConfig::from_yaml(
      "model: {path: unused}\nbudget: {full_layers: 2}\ndata: {text: tests/data/text/tinyshakespeare.txt}\nstages:\n"
      "  align: {tokens: 512}\n  select: {tokens: 512}\n"
      "  evaluate: {lengths: [128, 256], passkeys: 2, words: 4}\n",
      "test");
}

at::Tensor numbers_of(const proto::JudgedSet& judged) {
  return at::tensor({judged.error(), judged.divergence(), judged.recall(), judged.perplexity()}, at::kDouble);
}

at::Tensor judged(const std::vector<int64_t>& full_layers, int64_t samples, const std::string& path, Mesh& mesh,
                  const RunConfig& config) {
  const MorphableModel model = load(path, mesh, config, at::kDouble);
  StageContext here = test::context(mesh, config);
  return numbers_of(HardMixtureJudge(model, here, samples).judge(full_layers, /*with_text=*/true));
}

// As select's mixture with gates of 0 and 1, evaluate's recall and torch's log-softmax have it, sample by sample.
at::Tensor defined(const std::vector<int64_t>& full_layers, int64_t samples, const std::string& path, Mesh& one,
                   const RunConfig& config) {
  const c10::NoGradGuard no_gradient;
  const MorphableModel model = load(path, one, config, at::kDouble);
  StageContext here = test::context(one, config);
  at::Tensor alpha = at::zeros({kLayers}, at::kDouble);
  Routes routes(kLayers, Route::linear());
  for (const int64_t layer : full_layers) {
    alpha[layer].fill_(1.0);
    routes[static_cast<size_t>(layer)] = Route::full();
  }
  const MorphableModel hybrid = model.hybrid(routes);
  double error = 0.0, divergence = 0.0, answers = 0.0, negative_log = 0.0, plain = 0.0;
  RecallCount recall;
  for (int64_t i = 0; i < samples; ++i) {
    const Sample sample = judge_sample(i, here);
    const Batch batch = batch_of({sample});
    error += mix_beside_teacher(model, batch, mixing_routes(alpha, alpha), {}).loss.item<double>();
    answers += batch.answers_BT.sum().item<double>();
    recall += teacher_forced_recall(hybrid, routes, {sample}, 1).at(0);
    const int64_t length = batch.tokens_BT.size(1);
    const at::Tensor hidden = hybrid.forward(batch.tokens_BT, routes, hybrid.positions(0, length));
    const at::Tensor log_p = at::log_softmax(hidden[0].matmul(hybrid.head().t()), 1);
    const Routes all_full(kLayers, Route::full());
    const at::Tensor teacher = model.forward(batch.tokens_BT, all_full, model.positions(0, length));
    const at::Tensor teacher_log_p = at::log_softmax(teacher[0].matmul(model.head().t()), 1);
    for (int64_t t = 0; t + 1 < length; ++t) {
      if (batch.answers_BT[0][t].item<bool>()) {
        divergence += (teacher_log_p[t].exp() * (teacher_log_p[t] - log_p[t])).sum().item<double>();
        continue;
      }
      negative_log -= log_p[t][batch.tokens_BT[0][t + 1].item<int64_t>()].item<double>();
      plain += 1.0;
    }
  }
  return at::tensor({error / answers, divergence / answers, recall.word_recall(), std::exp(negative_log / plain)},
                    at::kDouble);
}

TEST(Judge, SaysOfAHardMixtureWhatItsDefinitionSaysOnEveryMesh) {
  const RunConfig config = small_run();
  const SharedModel small({.layers = kLayers});
  for (const auto& [kept, samples] : {std::pair{std::vector<int64_t>{1, 3}, kSamples}, {{1, 3}, 19}, {{}, kSamples}}) {
    const at::Tensor expected =
        made_by_one_rank([&](Mesh& one) { return defined(kept, samples, small.path(), one, config); });
    const at::Tensor alone =
        made_by_one_rank([&](Mesh& one) { return judged(kept, samples, small.path(), one, config); });
    EXPECT_LT(test::relative_error(expected, alone), 1e-12);
    for (const MeshShape& shape : every_mesh()) {
      SCOPED_TRACE(text_of(shape));
      Mesh mesh(world(), shape);
      const at::Tensor numbers = judged(kept, samples, small.path(), mesh, config);
      if (shape.pipeline * shape.tensor == 1) {
        EXPECT_TRUE(numbers.equal(alone)) << "the data size changed a bit";
      } else {
        EXPECT_LT(test::relative_error(alone, numbers), 1e-10);
      }
    }
  }
}

TEST(Judge, TheTeacherHasNoErrorAndTokensAndOperationsAreCounted) {
  const RunConfig config = small_run();
  const SharedModel small({.layers = kLayers});
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
  StageContext here = test::context(mesh, config);
  HardMixtureJudge judge(model, here, kSamples);
  const proto::JudgedSet whole = judge.judge({0, 1, 2, 3});
  EXPECT_EQ(whole.error(), 0.0);
  EXPECT_EQ(whole.divergence(), 0.0);
  EXPECT_EQ(whole.cost().sets(), 1);
  EXPECT_EQ(whole.samples(), kSamples);
  EXPECT_EQ(whole.cost().tokens(), 6 * 128 + 4 * 256) << "four samples a forward, of one length";
  const proto::JudgedSet from_the_first_layer_on = judge.judge({1, 2, 3});
  double parameters = 0.0;
  for (const Parameter& parameter : model.frozen_parameters()) parameters += parameter.value.numel();
  EXPECT_GT(from_the_first_layer_on.cost().flop(), static_cast<double>(whole.cost().tokens()) * parameters);

  // Whichever kernels do them.
  const MorphableModel in_float32 = load(small.path(), mesh, config, at::kFloat);
  HardMixtureJudge other(in_float32, here, kSamples);
  other.judge({0, 1, 2, 3});
  EXPECT_NEAR(other.judge({1, 2, 3}).cost().flop() / from_the_first_layer_on.cost().flop(), 1.0, 1e-3);
}

// Whatever was judged before, however many states are kept between layers.
TEST(Judge, SaysOfASetTheSameWhateverWasJudgedBefore) {
  const RunConfig config = small_run();
  const SharedModel small({.layers = kLayers});
  for (const MeshShape& shape : every_mesh()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MorphableModel model = load(small.path(), mesh, config, at::kDouble);
    StageContext here = test::context(mesh, config);
    const std::vector<std::vector<int64_t>> sets = {{1, 3}, {1, 2}, {1}, {0, 1}, {0, 1, 3}, {0, 1, 3}, {2}};
    std::vector<at::Tensor> anew;
    for (const std::vector<int64_t>& kept : sets)
      anew.push_back(numbers_of(HardMixtureJudge(model, here, kSamples).judge(kept, /*with_text=*/true)));
    for (const int64_t most_kept : {HardMixtureJudge::kMostKept, int64_t{100'000}, int64_t{1}}) {
      HardMixtureJudge judge(model, here, kSamples, most_kept);
      const double whole = judge.judge({}).cost().flop(), late = judge.judge({3}).cost().flop(),
                   again = judge.judge({3}).cost().flop();
      if (most_kept == HardMixtureJudge::kMostKept) {
        EXPECT_LT(late, 0.7 * whole);
        EXPECT_LT(again, 0.5 * late);
      }
      if (most_kept == 1) {
        EXPECT_EQ(again, late) << "there is no memory for states";
      }
      for (size_t i = 0; i < sets.size(); ++i)
        EXPECT_TRUE(numbers_of(judge.judge(sets[i], /*with_text=*/true)).equal(anew[i]))
            << i << " with " << most_kept << " bytes";
    }
  }
}

TEST(JudgedSets, AreRememberedOverStartsAndSavedWhenTheRunStops) {
  const test::TemporaryFolder own;
  const std::filesystem::path file = world().broadcast_text(own.path().string(), 0) + "/judgements.json";
  int asked = 0;
  const auto work = [&](const std::vector<int64_t>& kept, int64_t samples, bool with_text) {
    if (kept.empty()) throw Stopped("stopped");
    ++asked;
    proto::JudgedSet judged;
    judged.mutable_full_layers()->Add(kept.begin(), kept.end());
    judged.set_samples(samples);
    judged.set_error(0.1 * static_cast<double>(kept[0]));
    judged.set_recall(1.0 / 3.0);
    if (with_text) judged.set_perplexity(5.0);
    judged.mutable_cost()->set_tokens(7);
    return judged;
  };
  {
    JudgedSets first(file, world(), work);
    first.judge({3}, kSamples);
    first.judge({1, 2}, kSamples);
    EXPECT_THROW(first.judge({}, kSamples), Stopped);
  }
  world().barrier();
  JudgedSets second(file, world(), work);
  const Judgement again = second.judge({3}, kSamples);
  EXPECT_EQ(again.error, 0.1 * 3.0);
  EXPECT_EQ(again.recall, 1.0 / 3.0);
  second.judge({1, 2}, kSamples);
  EXPECT_EQ(asked, 2) << "nothing is judged twice";
  second.judge({2}, kSamples);
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(second.take_cost().tokens(), 21) << "as though judged anew";
  EXPECT_EQ(second.take_cost().tokens(), 0);
  EXPECT_EQ(second.judge({2}, kSamples, /*with_text=*/true).perplexity, 5.0) << "what was not asked for before";
  EXPECT_EQ(second.judge({2}, kSamples).perplexity, 5.0);
  EXPECT_EQ(asked, 4);
}

TEST(JudgedSets, TellJudgementsOnMoreSamplesFromThoseOnFewer) {
  const test::TemporaryFolder own;
  const std::filesystem::path file = world().broadcast_text(own.path().string(), 0) + "/judgements.json";
  const auto recall_by_samples = [](const std::vector<int64_t>& kept, int64_t samples, bool) {
    proto::JudgedSet judged;
    judged.mutable_full_layers()->Add(kept.begin(), kept.end());
    judged.set_samples(samples);
    judged.set_recall(1.0 / static_cast<double>(samples));
    judged.mutable_cost()->set_tokens(samples);
    return judged;
  };
  {
    JudgedSets first(file, world(), recall_by_samples);
    EXPECT_EQ(first.judge({3}, 2).recall, 0.5);
    EXPECT_EQ(first.judge({3}, 8).recall, 0.125);
    EXPECT_EQ(first.judge({3}, 2).recall, 0.5);
    EXPECT_EQ(first.take_cost().tokens(), 2 + 8 + 2) << "each judgement's own";
    first.save();
  }
  const auto never = [](const std::vector<int64_t>&, int64_t, bool) -> proto::JudgedSet {
    throw std::logic_error("judged twice");
  };
  JudgedSets second(file, world(), never);
  EXPECT_EQ(second.judge({3}, 8).recall, 0.125);
  EXPECT_EQ(second.judge({3}, 2).recall, 0.5);

  // A file that does not say on how many.
  if (world().rank() == 0) std::ofstream(file) << R"({"sets": [{"full_layers": ["3"], "recall": 0.75}]})";
  world().barrier();
  JudgedSets third(file, world(), recall_by_samples);
  EXPECT_EQ(third.judge({3}, 2).recall, 0.5) << "judged anew";
}

}  // namespace
}  // namespace flashmorph
