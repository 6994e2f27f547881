#include "distributed/plan/rehearsal.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>

#include "core/eval/recall.h"
#include "core/ops/vocabulary_loss.h"
#include "core/rehearsal/without_values.h"
#include "core/rehearsal/work_counter.h"
#include "core/select/by_gates.h"
#include "core/select/uniform.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/parallel/zero.h"
#include "distributed/plan/rehearsal_world.h"
#include "distributed/stages/align.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

// The layers that a hybrid keeps, spread evenly: which they will be is what the run is to find out.
std::vector<int64_t> expected_layers(const RunConfig& config, const ModelSpec& spec) {
  const auto element = static_cast<int64_t>(c10::elementSize(dtype_of(config.device)));
  return config.budget.milliseconds > 0.0 ? uniform_layers(spec.layers, std::max<int64_t>(1, spec.layers / 4))
                                          : uniform_layers(layer_budget(config.budget, spec, element));
}

Routes routes_that_keep(const std::vector<int64_t>& full_layers, const ModelSpec& spec) {
  Routes routes(static_cast<size_t>(spec.layers), Route::linear());
  for (const int64_t layer : full_layers) routes.at(static_cast<size_t>(layer)) = Route::full();
  return routes;
}

// So many tokens at the end of each sequence are answers.
Batch batch_on_host(const StepShape& shape, int64_t answers) {
  Batch batch{at::zeros({shape.sequences, shape.length}, at::kLong),
              at::zeros({shape.sequences, shape.length}, at::kBool), std::nullopt};
  batch.answers_BT.narrow(1, shape.length - answers, answers).fill_(true);
  return batch;
}

// A word is at least a token, and a line ends with one.
int64_t least_answer_tokens(const SequenceSection& data, int64_t length) {
  return std::min(length, data.passkeys.max * (data.words.max + 1));
}

// One rank of the run, which rehearses.
class Rehearsal {
 public:
  Rehearsal(const RunConfig& config, const ModelSpec& spec, const Layout& layout, int64_t pipeline_rank,
            const FullLayers& full_layers)
      : config_(config),
        layout_(layout),
        world_(rehearsal_world(layout.shape, layout.shape.rank_at({0, pipeline_rank, 0}))),
        mesh_(*world_, layout.shape),
        model_(load(spec)),
        routes_(routes_that_keep(full_layers ? *full_layers : expected_layers(config, spec), spec)) {
    const HeldFor branches(memory_, MemoryKind::branches);
    model_.add_branches(config.mixer, config.run.seed);
  }

  RankUse align() {
    const AlignSection& section = config_.stages.align;
    const StepShape shape = shape_of(section);
    const Batch batch = batch_on_host(shape, 0);
    at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(at::kMeta));
    const auto micro_batches = [&](MicroBatchRange some) {
      pipeline_.stream(some, states(shape), [&](int64_t, const at::Tensor& x) {
        return align_micro_batch(model_, batch, x, shape.micro_batches, loss);
      });
    };
    return train(section, model_.branch_parameters(), micro_batches, [&] {
      if (model_.shard().sequence_parallel()) model_.shard().all_reduce_sum(loss);
    });
  }

  RankUse select() {
    const SelectSection& section = config_.stages.select;
    const StepShape shape = shape_of(section);
    const Batch batch = batch_on_host(shape, least_answer_tokens(section.data, shape.length));
    const int64_t own = model_.own_layers().count();
    const at::Tensor alpha = at::full({own}, 0.5, at::kDouble);  // both branches count
    const auto micro_batches = [&](MicroBatchRange some) {
      pipeline_.forward_backward(some, states(shape), /*with_teacher=*/true, [&](int64_t, const States& x) {
        const at::Tensor leaf = alpha.to(at::kMeta).set_requires_grad(true);
        return mix_beside_teacher(model_, batch, mixing_routes(leaf, alpha), x, section.parallel.recompute == "full");
      });
    };
    return step(shape, micro_batches, [&] {
      const at::Tensor rows = at::zeros({shape.micro_batches, own + 2}, at::kDouble);
      gates_over_mesh(rows, shape.micro_batches * layout_.shape.data, alpha,
                      section.own.of<GateSettings>().gate_penalty, mesh_);
      of_all_layers(alpha, model_, mesh_);
    });
  }

  RankUse distill() {
    const DistillSection& section = config_.stages.distill;
    return train_hybrid(section, /*with_teacher=*/true,
                        [&](const MorphableModel& hybrid, const Batch& batch, const States& input, int64_t count) {
                          return distill_micro_batch(model_, hybrid, routes_, batch, input, count, section.parallel);
                        });
  }

  RankUse finetune() {
    const FinetuneSection& section = config_.stages.finetune;
    return train_hybrid(section, /*with_teacher=*/false,
                        [&](const MorphableModel& hybrid, const Batch& batch, const States& input, int64_t count) {
                          return finetune_micro_batch(hybrid, routes_, batch, input, count, section.parallel);
                        });
  }

  RankUse evaluate() {
    const EvaluateSection& section = config_.stages.evaluate;
    const StepShape shape = StepShape::of(section, layout_.shape.data);
    const Batch batch = batch_on_host(shape, std::min(shape.length, section.passkeys * (section.words + 1)));
    const MorphableModel hybrid = made_hybrid();
    RankUse use = step(
        shape,
        [&](MicroBatchRange) {
          const c10::NoGradGuard no_gradient;
          const at::Tensor hidden = hybrid.forward(batch.tokens_BT, routes_, hybrid.positions(0, shape.length));
          if (!hybrid.has_head()) return;
          const at::Tensor places = batch.answers_BT.flatten().nonzero().flatten().to(at::kMeta);
          greedy_tokens(hidden.flatten(0, 1).index_select(0, places), hybrid.head(), hybrid.shard());
        },
        [] {});
    use.parameters[MemoryKind::hybrid] = elements_of(hybrid.all_parameters());
    return use;
  }

 private:
  using MicroBatches = std::function<void(MicroBatchRange)>;
  using HybridForward =
      std::function<StageOutput(const MorphableModel&, const Batch&, const States&, int64_t micro_batches)>;

  MorphableModel load(const ModelSpec& spec) {
    allow_steps_without_values();
    const HeldFor frozen(memory_, MemoryKind::frozen);
    const Placement placement{mesh_.tensor_rank(), layout_.shape.tensor, dtype_of(config_.device), at::kMeta};
    return MorphableModel::load(ModelFiles(), spec, placement, mesh_.shard(),
                                layout_.layers[static_cast<size_t>(mesh_.pipeline_rank())], mesh_.pipeline_peers());
  }

  MorphableModel made_hybrid() {
    const HeldFor hybrid(memory_, MemoryKind::hybrid);
    return model_.hybrid(routes_);
  }

  StepShape shape_of(const TrainingSection& section) const { return StepShape::of(section, layout_.shape.data); }
  StateShape states(const StepShape& shape) const { return state_shape(model_, {shape.sequences, shape.length}); }

  RankUse train_hybrid(const TrainingSection& section, bool with_teacher, const HybridForward& forward) {
    const StepShape shape = shape_of(section);
    const Batch batch = batch_on_host(shape, 0);
    const MorphableModel hybrid = made_hybrid();
    RankUse use = train(section, hybrid.all_parameters(), [&](MicroBatchRange some) {
      pipeline_.forward_backward(some, states(shape), with_teacher, [&](int64_t, const States& input) {
        return forward(hybrid, batch, input, shape.micro_batches);
      });
    });
    use.parameters[MemoryKind::hybrid] = elements_of(hybrid.all_parameters());
    return use;
  }

  // As the stages' common loop does it (distributed/stages/trainer.cpp).
  RankUse train(
      const TrainingSection& section, const Parameters& parameters, const MicroBatches& micro_batches,
      const std::function<void()>& then = [] {}) {
    for (const Parameter& parameter : parameters) hold_its_gradient(parameter.value.set_requires_grad(true));
    const auto whole = single_communicator("data");
    const MemoryKind before = memory_.hold_for(MemoryKind::optimizer);
    DataShardedAdamW optimizer(values_of(parameters), {}, section.parallel.zero ? mesh_.data() : *whole);
    memory_.hold_for(before);
    return step(shape_of(section), micro_batches, [&] {
      then();
      optimizer.step(over_mesh(0.0, parameters, section, mesh_).gradients, 0.0);
    });
  }

  // The first gradient that a parameter gets becomes the one it keeps.
  void hold_its_gradient(const at::Tensor& parameter) {
    parameter.register_hook([&memory = memory_, leaf = parameter.unsafeGetTensorImpl()](const at::Tensor& gradient) {
      if (!leaf->grad().defined()) memory.relabel(gradient, MemoryKind::gradients);
    });
  }

  // Rehearses as many micro-batches as it takes until a pipeline is full and gradients add up; the others are like
  // them.
  RankUse step(const StepShape& shape, const MicroBatches& micro_batches, const std::function<void()>& finish) {
    const int64_t some = std::min(shape.micro_batches, layout_.shape.pipeline + 1);
    const ScopeWatcher logits(
        kVocabularyScope, [&] { memory_.hold_for(MemoryKind::logits); },
        [&] { memory_.hold_for(MemoryKind::activations); });
    memory_.start_peak();
    RankUse use{.layers = model_.own_layers(), .parameters = {}, .peak = {}, .flop = 0.0, .traffic = {}};
    {
      const WorkCounter work;
      micro_batches({0, some});
      use.flop = work.flop();
    }
    const auto sent_by_some = sent();
    finish();
    use.traffic = sent();
    use.peak = memory_.peak();
    const double times = static_cast<double>(shape.micro_batches) / static_cast<double>(some);
    use.flop *= times;
    for (const auto& [operation, part] : sent_by_some) {
      use.traffic[operation].calls += (times - 1.0) * part.calls;
      use.traffic[operation].bytes += (times - 1.0) * part.bytes;
    }
    use.parameters = {{MemoryKind::frozen, elements_of(model_.frozen_parameters())},
                      {MemoryKind::branches, elements_of(model_.branch_parameters())}};
    return use;
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
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;
  MorphableModel model_;
  Routes routes_;
  Pipeline pipeline_{mesh_};
};

}  // namespace

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
