#include "distributed/forecast/rehearsal.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "core/eval/recall.h"
#include "core/ops/vocabulary_loss.h"
#include "core/rehearsal/kernel_counter.h"
#include "core/rehearsal/without_values.h"
#include "core/rehearsal/work_counter.h"
#include "core/select/uniform.h"
#include "distributed/forecast/rehearsal_world.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/stages/align.h"
#include "distributed/stages/frozen_in_float8.h"
#include "distributed/stages/gates.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "distributed/stages/weights.h"

namespace flashmorph {
namespace {

// So many tokens of each sequence are answers: its first ones, so that the tensor rank that rehearses has them where
// the ranks share the tokens, as one of them will.
Batch batch_on_host(const StepShape& shape, int64_t answers) {
  Batch batch{at::zeros({shape.sequences, shape.length}, at::kLong),
              at::zeros({shape.sequences, shape.length}, at::kBool), std::nullopt};
  batch.answers_BT.narrow(1, 0, answers).fill_(true);
  return batch;
}

// A word is at least a token, and a line ends with one.
int64_t least_answer_tokens(const SequenceSection& data, int64_t length) {
  return std::min(length, data.passkeys.max * (data.words.max + 1));
}

// Of one answer, at the end of the sample.
Sample sample_with(int64_t answer_tokens, int64_t length) {
  const int64_t count = std::min(length - 1, answer_tokens);
  return {.tokens = std::vector<int32_t>(static_cast<size_t>(length), 0),
          .answers = {{.first = length - count, .count = count, .ordinal = 0, .depth = 0.0}}};
}

RankWork sum(RankWork all, const RankWork& more, double times) {
  all.flop += times * more.flop;
  for (const auto& [operation, sent] : more.traffic) {
    all.traffic[operation].calls += times * sent.calls;
    all.traffic[operation].bytes += times * sent.bytes;
  }
  return all;
}

// One rank of the run, which rehearses.
class Rehearsal {
 public:
  Rehearsal(const RunConfig& config, const ModelSpec& spec, const Layout& layout, int64_t pipeline_rank,
            const FullLayers& full_layers)
      : config_(config),
        layout_(layout),
        world_(rehearsal_world(layout.shape, layout.shape.rank_at({0, pipeline_rank, 0}),
                               [this](const Meeting& meeting) { meet(meeting); })),
        mesh_(*world_, layout.shape),
        model_(load(spec)),
        routes_(
            routes_that_keep(full_layers ? *full_layers : uniform_layers(expected_budget(config, spec)), spec.layers)) {
    const HeldFor branches(memory_, MemoryKind::branches);
    model_.add_branches(config.mixer, config.run.seed);
  }

  RankUse align() {
    const AlignSection& section = config_.stages.align;
    return train(section, model_.branch_parameters(), {{model_}},
                 [&](const MicroBatches& some) { return align_step(model_, some, section, mesh_); });
  }

  RankUse select() {
    const SelectSection& section = config_.stages.select;
    const StepShape shape = StepShape::of(section, layout_.shape.data);
    const FrozenInFloat8 in_float8 = quantised({{model_, "", /*mixes_attention=*/true}});
    in_float8.require_some();
    const at::Tensor alpha = at::full({model_.own_layers().count()}, 0.5, at::kDouble);  // both branches count
    return step(shape, least_answer_tokens(section.data, shape.length), [&](const MicroBatches& some) {
      select_step(model_, alpha, some, section, mesh_);
      for (int i = 0; i < gathers_a_step(section); ++i) of_all_layers(alpha, model_, mesh_);
    });
  }

  RankUse distill() {
    const DistillSection& section = config_.stages.distill;
    return with_hybrid([&](const MorphableModel& hybrid) {
      return train(section, hybrid.all_parameters(), {{hybrid}, {model_}}, [&](const MicroBatches& some) {
        return distill_step(model_, hybrid, routes_, some, section, mesh_);
      });
    });
  }

  RankUse finetune() {
    const FinetuneSection& section = config_.stages.finetune;
    return with_hybrid([&](const MorphableModel& hybrid) {
      return train(section, hybrid.all_parameters(), {{hybrid}},
                   [&](const MicroBatches& some) { return finetune_step(hybrid, routes_, some, section, mesh_); });
    });
  }

  RankUse evaluate() {
    const EvaluateSection& section = config_.stages.evaluate;
    const StepShape shape = StepShape::of(section, layout_.shape.data);
    const std::vector<Sample> samples(static_cast<size_t>(shape.sequences),
                                      sample_with(section.passkeys * (section.words + 1), shape.length));
    return with_hybrid([&](const MorphableModel& hybrid) {
      return step(shape, 0, [&](const MicroBatches&) { teacher_forced_recall(hybrid, routes_, samples, 1); });
    });
  }

 private:
  MorphableModel load(const ModelSpec& spec) {
    allow_steps_without_values();
    const HeldFor frozen(memory_, MemoryKind::frozen);
    const Placement placement{mesh_.tensor_rank(), layout_.shape.tensor, dtype_of(config_.device), at::kMeta};
    return MorphableModel::load(ModelFiles(), spec, placement, mesh_.shard(),
                                layout_.layers[static_cast<size_t>(mesh_.pipeline_rank())], mesh_.pipeline_peers());
  }

  RankUse with_hybrid(const std::function<RankUse(const MorphableModel& hybrid)>& work) {
    const MemoryKind before = memory_.hold_for(MemoryKind::hybrid);
    const MorphableModel hybrid = model_.hybrid(routes_);
    memory_.hold_for(before);
    RankUse use = work(hybrid);
    use.parameters[MemoryKind::hybrid] = elements_of(hybrid.all_parameters());
    return use;
  }

  RankUse train(const TrainingSection& section, const Parameters& weights, const std::vector<StageModel>& models,
                const StepFunction& stage_step) {
    const MemoryKind before = memory_.hold_for(MemoryKind::optimizer);
    TrainedWeights trained(weights, section, mesh_);
    memory_.hold_for(before);
    for (const Parameter& weight : weights) hold_its_gradient(weight.value);
    const FrozenInFloat8 in_float8 = quantised(models);
    in_float8.require_some();
    return step(StepShape::of(section, layout_.shape.data), 0,
                [&](const MicroBatches& some) { trained.update(stage_step(some).gradients, /*learning_rate=*/0.0); });
  }

  FrozenInFloat8 quantised(const std::vector<StageModel>& models) {
    const HeldFor frozen(memory_, MemoryKind::frozen);
    return FrozenInFloat8(models, config_.device);
  }

  // The first gradient that a weight gets becomes the one it keeps. A backward pass that puts it off shows none.
  void hold_its_gradient(const at::Tensor& weight) {
    weight.register_hook([&memory = memory_, leaf = weight.unsafeGetTensorImpl()](const at::Tensor& gradient) {
      if (gradient.defined() && !leaf->grad().defined()) memory.relabel(gradient, MemoryKind::gradients);
    });
  }

  // A step of as many micro-batches as it takes until a pipeline is full and gradients add up; each of the others takes
  // what these take more than a single one.
  RankUse step(const StepShape& shape, int64_t answers, const std::function<void(const MicroBatches&)>& work) {
    const int64_t some = std::min(shape.micro_batches, layout_.shape.pipeline + 1);
    const ScopeWatcher logits(
        kVocabularyScope, [&] { memory_.hold_for(MemoryKind::logits); },
        [&] { memory_.hold_for(MemoryKind::activations); });
    const auto spent_on = [&](int64_t count) {
      const RankWork before{0.0, sent()};
      const WorkCounter counter;
      KernelCounter kernels;
      kernels_ = &kernels;
      work({.mine = {0, count},
            .count = count * layout_.shape.data,
            .shape = {shape.sequences, shape.length},
            .batch = [&](int64_t) { return batch_on_host(shape, answers); }});
      meet({});
      kernels_ = nullptr;
      return sum({counter.flop(), sent()}, before, -1.0);
    };
    const auto others = static_cast<double>(shape.micro_batches - some);
    const RankWork single = others > 0.0 ? spent_on(1) : RankWork();
    Trace of_one = std::exchange(trace_, {});
    memory_.start_peak();
    RankWork all = spent_on(some);
    if (others > 0.0) all = sum(all, sum(all, single, -1.0), others / static_cast<double>(some - 1));
    return {all,
            model_.own_layers(),
            {{MemoryKind::frozen, elements_of(model_.frozen_parameters())},
             {MemoryKind::branches, elements_of(model_.branch_parameters())}},
            memory_.peak(),
            some,
            std::exchange(trace_, {}),
            std::move(of_one)};
  }

  void meet(const Meeting& meeting) {
    if (kernels_ != nullptr) trace_.push_back({kernels_->take(), meeting});
  }

  // By this rank, so far.
  TrafficByGroup sent() {
    TrafficByGroup traffic;
    for (const Communicator* group : mesh_.groups())
      for (const auto& [operation, entry] : group->traffic().by_operation)
        traffic[{group->name(), operation}] = {static_cast<double>(entry.calls), static_cast<double>(entry.bytes)};
    return traffic;
  }

  const RunConfig& config_;
  const Layout& layout_;
  TensorMemory& memory_ = TensorMemory::of_meta();
  KernelCounter* kernels_ = nullptr;  // of the step under way
  Trace trace_;
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;
  MorphableModel model_;
  Routes routes_;
};

}  // namespace

LayerBudget expected_budget(const RunConfig& config, const ModelSpec& spec) {
  if (config.budget.milliseconds > 0.0)
    return LayerBudget::of_layers(spec.layers, std::max<int64_t>(1, spec.layers / 4));
  return layer_budget(config.budget, spec, static_cast<int64_t>(c10::elementSize(dtype_of(config.device))));
}

StepShape StepShape::of(const TrainingSection& section, int64_t data_ranks) {
  const int64_t length = section.longest(), micro = section.micro_batch();
  return {micro / length, length, section.batch_tokens / micro / data_ranks};
}

StepShape StepShape::of(const EvaluateSection& section, int64_t data_ranks) {
  const int64_t mine = (section.samples + data_ranks - 1) / data_ranks;
  return {std::min(kSamplesAtATime, mine), std::ranges::max(section.lengths), 1};
}

RankUse rehearse(const std::string& stage, const RunConfig& config, const ModelSpec& spec, const Layout& layout,
                 int64_t pipeline_rank, const FullLayers& full_layers) {
  Rehearsal rehearsal(config, spec, layout, pipeline_rank, full_layers);
  if (stage == "align") return rehearsal.align();
  if (stage == "select") return rehearsal.select();
  if (stage == "distill") return rehearsal.distill();
  if (stage == "finetune") return rehearsal.finetune();
  TORCH_CHECK(stage == "evaluate", "no stage ", stage);
  return rehearsal.evaluate();
}

}  // namespace flashmorph
