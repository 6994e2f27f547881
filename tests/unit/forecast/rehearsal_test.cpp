#include "distributed/forecast/rehearsal.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/morph/morphable_model.h"
#include "core/ops/norm.h"
#include "core/rehearsal/without_values.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/stages/frozen_in_float8.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using test::SmallModel;

constexpr int64_t kTokens = 64;

// A model on disk, and a run of it whose sequences are one chunk long.
struct SmallRun {
  SmallModel model;
  test::TemporaryFolder folder;
  ModelSpec spec;
  RunConfig config;

  explicit SmallRun(SmallModel shape, const std::string& mixer = "lightning", const std::string& more = "")
      : model(shape) {
    test::write_small_model(folder.path(), model);
    spec = ModelSpec::open(folder.path());
    const std::string stage = "{tokens: 256, batch_tokens: 256, data: {lengths: 64, passkeys: 1, words: 2}}\n";
    config = RunConfig::from_yaml(
        "model: {path: " + folder.path().string() + "}\nmixer: {kind: " + mixer +
            "}\nbudget: {full_layers: 1}\ndata: {text: unused}\n" + more + "stages:\n  align: " + stage +
            "  select: " + stage + "  distill: " + stage + "  finetune: " + stage +
            "  evaluate: {lengths: 64, passkeys: 1, words: 2, samples: 2, greedy_samples: 1}\n",
        "test");
  }

  RankUse rehearsed(const std::string& stage, int64_t ranks = 1, int64_t pipeline_rank = 0) const {
    return rehearse(stage, config, spec, layout_of(stage, config, spec, ranks), pipeline_rank);
  }
};

int64_t elements(const Parameters& parameters) {
  int64_t count = 0;
  for (const Parameter& parameter : parameters) count += parameter.value.numel();
  return count;
}

TEST(Rehearsal, ParametersAreThoseOfTheModelOnDisk) {
  for (const char* mixer : {"lightning", "gla", "gated_delta_net"})
    for (const auto& [tensor, pipeline] :
         {std::pair(1, 1), std::pair(2, 1), std::pair(1, 3), std::pair(2, 3), std::pair(4, 1)}) {
      const SmallRun run(
          {.layers = 3, .tied = false}, mixer,
          "parallel: {tensor: " + std::to_string(tensor) + ", pipeline: " + std::to_string(pipeline) + "}\n");
      const Layout layout = layout_of("align", run.config, run.spec, tensor * pipeline);
      for (int64_t p = 0; p < pipeline; ++p) {
        Shard shard;
        MorphableModel model =
            MorphableModel::load(ModelFiles::open(run.folder.path()), run.spec, {0, tensor, at::kFloat, at::kCPU},
                                 shard, layout.layers[static_cast<size_t>(p)], PipelinePeers::none());
        model.add_branches(run.config.mixer, 1);
        const RankUse use = run.rehearsed("align", tensor * pipeline, p);
        EXPECT_EQ(use.parameters.at(MemoryKind::frozen), elements(model.frozen_parameters()))
            << mixer << tensor << pipeline;
        EXPECT_EQ(use.parameters.at(MemoryKind::branches), elements(model.branch_parameters()))
            << mixer << tensor << pipeline;
        EXPECT_EQ(use.peak[MemoryKind::frozen], 4 * elements(model.frozen_parameters())) << mixer << tensor << pipeline;
        EXPECT_EQ(use.peak[MemoryKind::gradients], 4 * elements(model.branch_parameters()))
            << mixer << tensor << pipeline;
      }
    }
}

TEST(Rehearsal, AdamWKeepsTwoMomentsAndOfAShortTypeACopy) {
  const SmallRun run({});
  const int64_t trained = run.rehearsed("align").parameters.at(MemoryKind::branches);
  const int64_t counters = 16 * 4;  // a step count each tensor
  EXPECT_NEAR(static_cast<double>(run.rehearsed("align").peak[MemoryKind::optimizer]),
              2.0 * 4.0 * static_cast<double>(trained), 4 * counters);
  const SmallRun bf16({}, "lightning", "device: {dtype: bfloat16}\n");
  EXPECT_NEAR(static_cast<double>(bf16.rehearsed("align").peak[MemoryKind::optimizer]),
              3.0 * 4.0 * static_cast<double>(trained), 4 * counters);
}

TEST(Rehearsal, ZeroSharesTheMomentsOverTheDataRanks) {
  const SmallRun whole({}), shared({}, "lightning", "parallel: {zero: true}\n");
  const auto bytes = [](const SmallRun& run) {
    return static_cast<double>(run.rehearsed("distill", 4).peak[MemoryKind::optimizer]);
  };
  EXPECT_NEAR(bytes(shared) / bytes(whole), 0.25, 0.02);
}

// By hand: 2 for each multiply-add; a layer with full attention, one with lightning attention in a single chunk, the
// logits of the answers.
TEST(Rehearsal, FlopOfAForwardAreThoseCountedByHand) {
  const SmallRun run({.layers = 2});
  const auto& m = run.model;
  const double N = 2.0 * kTokens, T = kTokens, D = m.hidden, Q = m.heads * m.head_dim, G = m.kv_heads * m.head_dim,
               F = m.intermediate, K = m.head_dim;
  const double feed_forward = 2.0 * N * 3.0 * D * F;
  const double full = 2.0 * N * D * (2.0 * Q + 2.0 * G) + 2.0 * N * T * Q;  // scores and their use, of half the pairs
  const double linear = 2.0 * N * D * 5.0 * Q                               // q, k, v, z, o
                        + 2.0 * 2.0 * N * T * Q                             // inside the chunk, of all pairs
                        + 2.0 * 2.0 * N * K * Q;                            // into the state and out of it
  const double answers = 2.0 * 3.0;                                         // two samples of two words and a newline
  EXPECT_DOUBLE_EQ(run.rehearsed("evaluate").flop,
                   full + linear + 2.0 * feed_forward + 2.0 * answers * D * m.vocabulary);
}

TEST(Rehearsal, TrainingAllWeightsIsThreeForwards) {
  const SmallRun run({.layers = 2});
  const double forward = 2.0 * run.rehearsed("evaluate").flop;  // of four sequences rather than two
  EXPECT_GT(run.rehearsed("finetune").flop, 2.8 * forward);
  EXPECT_LT(run.rehearsed("finetune").flop, 4.0 * forward);
}

TEST(Rehearsal, RecomputingKeepsLessAndComputesMore) {
  const SmallRun keeps({.layers = 6}), recomputes({.layers = 6}, "lightning", "parallel: {recompute: full}\n");
  for (const char* stage : {"select", "distill", "finetune"}) {
    const RankUse kept = keeps.rehearsed(stage), recomputed = recomputes.rehearsed(stage);
    EXPECT_LT(recomputed.peak[MemoryKind::activations], 0.6 * static_cast<double>(kept.peak[MemoryKind::activations]))
        << stage;
    EXPECT_GT(recomputed.flop, 1.2 * kept.flop) << stage;
  }
}

// As many multiply-adds by operands of a byte; two forms of each frozen matrix in select, one of the teacher's in
// distill.
TEST(Rehearsal, FrozenProjectionsInFloat8AreHeldBesideTheWeights) {
  const std::string device = "device: {dtype: bfloat16, frozen_dtype: ";
  const SmallRun same({}, "lightning", device + "same}\n"), fp8({}, "lightning", device + "fp8}\n");
  Shard shard;
  MorphableModel model =
      MorphableModel::load(ModelFiles::open(fp8.folder.path()), fp8.spec, {0, 1, at::kBFloat16, at::kCPU}, shard);
  model.add_branches(fp8.config.mixer, 1);
  for (const char* stage : {"align", "select", "distill", "finetune"}) {
    const RankUse before = same.rehearsed(stage), now = fp8.rehearsed(stage);
    const bool selects = std::string(stage) == "select", has_teacher = std::string(stage) != "finetune";
    const FrozenInFloat8 in_float8({{model, "", selects}}, fp8.config.device);
    int64_t bytes = 0;
    for (const Parameter& form : in_float8.forms()) bytes += static_cast<int64_t>(form.value.nbytes());
    EXPECT_EQ(now.peak[MemoryKind::frozen] - before.peak[MemoryKind::frozen], has_teacher ? bytes : 0) << stage;
    EXPECT_DOUBLE_EQ(now.flop, before.flop) << stage;
    const bool any = std::ranges::any_of(now.trace[0].kernels, [](const Kernel& kernel) {
      return kernel.dtype == at::kFloat8_e4m3fn && kernel.kind == Kernel::Kind::product;
    });
    EXPECT_EQ(any, has_teacher) << stage;
  }
  const SmallRun narrow({.hidden = 40}, "lightning", device + "fp8}\n");
  EXPECT_THROW(narrow.rehearsed("select"), BadInput);
}

// Where tensor ranks share the tokens, the answers of a sequence may all be one rank's.
TEST(Rehearsal, FewAnswersBelongToARankThatRehearses) {
  const SmallRun whole({}, "lightning", "parallel: {tensor: 2}\n"),
      shared({}, "lightning", "parallel: {tensor: 2, sequence: true}\n");
  EXPECT_NEAR(shared.rehearsed("select", 2).flop / whole.rehearsed("select", 2).flop, 1.0, 1e-3);
}

// What a card reads and writes, by hand: N numbers of 2 bytes a tensor.
TEST(KernelCounter, CountsWhatACardWouldStart) {
  allow_steps_without_values();
  constexpr int64_t R = 32, C = 64, N = R * C;
  const auto meta = at::TensorOptions(at::kMeta).dtype(at::kBFloat16);
  const at::Tensor a = at::zeros({R, C}, meta), weight = at::zeros({C}, meta), table = at::zeros({1000, C}, meta);
  const at::Tensor rows = at::zeros({R}, meta.dtype(at::kLong)), on_host = at::zeros({R, C});
  const auto kernels_of = [](const auto& work) {
    KernelCounter counter;
    work();
    std::vector<std::pair<double, double>> kernels;  // flop, bytes
    for (const Kernel& kernel : counter.take()) kernels.emplace_back(kernel.flop, kernel.bytes);
    EXPECT_TRUE(counter.take().empty());
    return kernels;
  };
  using testing::ElementsAre, testing::IsEmpty, testing::Pair;
  EXPECT_THAT(kernels_of([&] { a + a; }), ElementsAre(Pair(0.0, 3 * 2 * N)));
  EXPECT_THAT(kernels_of([&] { a.add_(a); }), ElementsAre(Pair(0.0, 3 * 2 * N)));
  EXPECT_THAT(kernels_of([&] { a.copy_(a); }), ElementsAre(Pair(0.0, 2 * 2 * N)));
  EXPECT_THAT(kernels_of([&] { a + weight.expand({R, C}); }), ElementsAre(Pair(0.0, 2 * 2 * N + 2 * C)));
  EXPECT_THAT(kernels_of([&] { at::linear(a, table); }),
              ElementsAre(Pair(2.0 * N * 1000, 2 * (N + 1000 * C + R * 1000))));
  at::Tensor sum = at::zeros({R, 1000}, meta.dtype(at::kFloat));
  EXPECT_THAT(kernels_of([&] { at::addmm_out(sum, sum, a, table.t(), at::kFloat); }),
              ElementsAre(Pair(2.0 * N * 1000, 2 * (N + 1000 * C) + 2 * 4 * R * 1000)));
  {
    KernelCounter of_products;
    at::addmm_out(sum, sum, a, table.t(), at::kFloat);
    EXPECT_EQ(of_products.take().at(0).dtype, at::kBFloat16) << "as fast as its factors are multiplied";
  }
  EXPECT_THAT(kernels_of([&] { at::embedding(table, rows); }), ElementsAre(Pair(0.0, 8 * R + 2 * 2 * N)));
  EXPECT_THAT(kernels_of([&] { rms_norm(a, weight, 1e-6); }), ElementsAre(Pair(0.0, 2 * 2 * N + 2 * C))) << "fused";
  EXPECT_THAT(kernels_of([&] {
                a.t().view({C, R}).narrow(0, 0, 1);
                at::empty_like(a);
              }),
              IsEmpty());
  EXPECT_THAT(kernels_of([&] { on_host + on_host; }), IsEmpty());
}

// A step's products and attention are kernels; what is computed inside a fused operator is that operator's.
TEST(Rehearsal, AStepsKernelsAreItsOperators) {
  const SmallRun run({.layers = 2});
  const RankUse use = run.rehearsed("evaluate");
  ASSERT_EQ(use.trace.size(), 1U) << "one rank meets nobody";
  double products = 0.0;
  std::map<Kernel::Kind, int64_t> count;
  for (const Kernel& kernel : use.trace[0].kernels) {
    ++count[kernel.kind];
    products += kernel.flop;
  }
  const auto& m = run.model;
  const double N = 2.0 * kTokens, T = kTokens, Q = m.heads * m.head_dim;
  EXPECT_EQ(count[Kernel::Kind::attention], 1) << "one layer is full";
  EXPECT_EQ(count[Kernel::Kind::lightning], 1) << "one is linear";
  EXPECT_DOUBLE_EQ(use.flop - products, 2.0 * 2.0 * N * T * Q + 2.0 * 2.0 * N * m.head_dim * Q);
}

TEST(Rehearsal, ATraceHasEveryMessage) {
  const SmallRun run({.layers = 4}, "lightning", "parallel: {tensor: 2, pipeline: 2}\n");
  for (const char* stage : {"align", "select", "distill", "finetune"})
    for (int64_t p = 0; p < 2; ++p) {
      const RankUse use = run.rehearsed(stage, 8, p);  // two micro-batches each
      std::map<std::pair<std::string, std::string>, double> bytes;
      for (const Stretch& stretch : use.trace)
        bytes[{stretch.meeting.group, stretch.meeting.operation}] += stretch.meeting.bytes;
      for (const auto& [place, sent] : use.traffic)
        EXPECT_DOUBLE_EQ(bytes[place], sent.bytes) << stage << p << place.first << place.second;
      EXPECT_EQ(use.trace.back().meeting.kind, Meeting::Kind::end);
    }
}

TEST(Rehearsal, EveryMixerAndStageCanBeRehearsed) {
  for (const char* mixer : {"lightning", "gla", "gated_delta_net", "mamba2", "window"})
    for (const char* dtype : {"float32", "float64", "bfloat16", "bfloat16, frozen_dtype: fp8"}) {
      const SmallRun run({.layers = 4}, mixer,
                         std::string("device: {dtype: ") + dtype + "}\nparallel: {tensor: 2, pipeline: 2}\n");
      for (const char* stage : {"align", "select", "distill", "finetune", "evaluate"})
        for (int64_t p = 0; p < 2; ++p) {
          const RankUse use = run.rehearsed(stage, 8, p);
          EXPECT_GT(use.flop, 0.0) << mixer << dtype << stage;
          EXPECT_GT(use.peak[MemoryKind::activations], 0) << mixer << dtype << stage;
        }
    }
  EXPECT_EQ(TensorMemory::of_meta().alive().total(), 0) << "a rehearsal leaves something behind";
}

TEST(Rehearsal, ExpertsShareTheTokensEvenly) {
  const ModelSpec spec = ModelSpec::open("tests/golden/families/qwen3-moe");
  RunConfig config = SmallRun({}).config;
  for (const char* stage : {"align", "select", "distill"})
    EXPECT_GT(rehearse(stage, config, spec, layout_of(stage, config, spec, 1), 0).flop, 0.0);
}

}  // namespace
}  // namespace flashmorph
