#include "distributed/coordinator/stage_table.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/base/bad_input.h"
#include "core/base/clock.h"
#include "core/export/hugging_face.h"
#include "core/select/selector.h"
#include "distributed/checkpoint/global_tensors.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/coordinator/checks.h"
#include "distributed/coordinator/commands.h"
#include "distributed/coordinator/plans.h"
#include "distributed/measure/evaluate.h"
#include "distributed/measure/judge.h"
#include "distributed/measure/judged_sets.h"
#include "distributed/measure/measures.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/run/results.h"
#include "distributed/stages/align.h"
#include "distributed/stages/gate_history.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"

// The stages of a run: whether it has one, what one reads and writes, on which mesh, and what every rank does.

namespace flashmorph {
namespace {

using Command = Stage::Command;
using Files = Stage::Files;

LayerBudget budget_of(const RunConfig& config, PlacedModel& placed, const proto::LayerLatency& latency) {
  return layer_budget(config.budget, placed.spec(), placed.element_bytes(), numbers_of(latency));
}

LayerBudget budget_of(RunUnderWay& run) { return budget_of(run.config, run.placed, run.latency); }

// A checkpoint refers to the weights that it does not hold: the teacher's, and behind align the branches. Rank 0
// compares.
CheckpointPlace checkpoints_of(RunUnderWay& run, const std::string& command) {
  CheckpointPlace place{.folder = run.folder.checkpoints_folder(), .stage = command};
  run.on_rank_0([&] {
    place.frozen["teacher"] = run.folder.state().source_hash();
    if (command != "align") place.frozen["branches"] = run.folder.sha256_as_written(run.folder.branches_file());
  });
  return place;
}

StageContext context(RunUnderWay& run, CheckpointPlace checkpoints = {}) {
  return {run, run.placed.mesh(), std::move(checkpoints)};
}

// On rank 0, with where it comes from.
template <class Message>
void write(const RunUnderWay& run, const std::filesystem::path& file, Message& message, const std::string& stage,
           const StageCost& cost = {}) {
  const Phase saving(run.watchdog, Work::save, file.filename().string());
  proto::Provenance& origin = *message.mutable_provenance();
  origin.set_stage(stage);
  origin.set_tokens(cost.tokens);
  origin.set_seconds(cost.seconds);
  origin.set_seed(run.config.run.seed);
  origin.set_source_hash(run.folder.state().source_hash());
  run.on_rank_0([&] { write_message(file, message); });
}

const proto::HybridPlan& plan_of(const RunUnderWay& run, const std::string& name) {
  for (const proto::HybridPlan& plan : run.plans.plans())
    if (plan.name() == name) return plan;
  throw BadInput(run.folder.plan_file().string(), "has no plan named " + name);
}

Routes routes_of(const RunUnderWay& run, const proto::HybridPlan& plan) {
  const int64_t layers = run.placed.spec().layers;
  for (const int64_t layer : plan.full_layers())
    if (layer < 0 || layer >= layers)
      throw BadInput(run.folder.plan_file().string(),
                     fmt::format("keeps layer {} of a model of {} layers", layer, layers));
  return routes_that_keep({plan.full_layers().begin(), plan.full_layers().end()}, layers);
}

// The plan's model after a training stage.
MorphableModel hybrid(RunUnderWay& run, const proto::HybridPlan& plan, const std::string& after) {
  MorphableModel hybrid = run.placed.model().hybrid(routes_of(run, plan));
  if (after == "align") return hybrid;
  const std::filesystem::path file = run.folder.hybrid_file(first_alike(plan, run.plans).name(), after);
  on_all_ranks(run.world, [&] { read_into(hybrid.all_parameters(), ModelFiles::open_file(file), hybrid.placement()); });
  return hybrid;
}

// It was measured at the start, before anything was written.
StageCost keep_latency(RunUnderWay& run, const Command&) {
  proto::LayerLatency latency = run.latency;
  const StageCost cost{0, latency.provenance().seconds()};
  write(run, run.folder.latency_file(), latency, "latency", cost);
  return cost;
}

StageCost align_branches(RunUnderWay& run, const Command&) {
  const AlignSection& section = run.config.stages.align;
  run.placed.start_branches();
  StageContext here = context(run, checkpoints_of(run, "align"));
  if (!section.branches.empty()) run.observer.note("align  goes on from " + section.branches);
  const StageCost cost = section.tokens > 0 ? align(run.placed.model(), here) : StageCost();
  const Phase saving(run.watchdog, Work::save, "align");
  save_global(run.folder.branches_file(), run.placed.model().branch_parameters(), run.placed.mesh(),
              branch_facts(run.config, run.folder.state().source_hash()));
  run.placed.keep_branches();
  return cost;
}

StageCost select_layers(RunUnderWay& run, const Command&) {
  StageContext here = context(run, checkpoints_of(run, "select"));
  const auto [gates, cost] = select_gates(run.placed.model(), budget_of(run), here);
  run.gates = gates;
  run.gates.set_method(run.config.stages.select.method);
  write(run, run.folder.gates_file(), run.gates, "select", cost);
  return cost;
}

// Every rank picks, as all of them take part in judging.
proto::PlanSet pick_by_judging(RunUnderWay& run) {
  constexpr double kNoteEvery = 10.0;  // seconds
  place(run, "evaluate", /*with_branches=*/true);
  StageContext here = context(run);
  std::map<int64_t, HardMixtureJudge> judges;  // by their samples, each made for the first set that is not known yet
  const int64_t most_kept = HardMixtureJudge::most_kept_by_each(run.config.stages.select);
  Stopwatch since_note;
  int64_t count = 0;
  JudgedSets judged(
      run.folder.judgements_file(), run.world,
      [&](const std::vector<int64_t>& full_layers, int64_t samples, bool with_text) {
        run.stop.throw_if_agreed(run.world, fmt::format("in discretize before step {}", ++count));
        const Phase judging(run.watchdog, Work::evaluate, "discretize", count);
        HardMixtureJudge& judge =
            judges.try_emplace(samples, run.placed.model(), here, samples, most_kept).first->second;
        const proto::JudgedSet set = judge.judge(full_layers, with_text);
        if (since_note.seconds() > kNoteEvery) {
          run.observer.note(fmt::format("discretize  {} sets of layers judged, the last one's recall {:.1f} %", count,
                                        100.0 * set.recall()));
          since_note = Stopwatch();
        }
        return set;
      });
  const proto::PlanSet plans = discretize(run.config, budget_of(run), run.gates, &judged);
  judged.save();
  return plans;
}

// Rank 0 decides and writes; every rank gets the plans.
StageCost discretize_gates(RunUnderWay& run, const Command&) {
  const Stopwatch watch;
  const RunConfig& config = run.config;
  if (asks_a_judge(config.stages)) {
    run.plans = pick_by_judging(run);
  } else {
    run.on_rank_0([&] { run.plans = discretize(config, budget_of(run), run.gates); });
  }
  for (const proto::FrontierPoint& point : GateHistory(run.gates, config.stages.select, budget_of(run))
                                               .frontier(run.placed.spec().kv_bytes(run.placed.element_bytes())))
    *run.plans.add_frontier() = point;
  run.plans.ParseFromString(run.world.broadcast_text(run.plans.SerializeAsString(), 0));
  write(run, run.folder.plan_file(), run.plans, "discretize");
  for (const proto::HybridPlan& plan : run.plans.plans())
    if (!plan.contenders().empty()) run.observer.note("discretize  " + judged_text(plan));
  for (const proto::HybridPlan& plan : run.plans.plans())
    if (selector_named(plan.name()).needs_gates() && plan.margin() <= plan.noise())
      run.observer.warn(fmt::format(
          "{}: the pick's margin, {:f}, is within the gates' noise, {:f}; more tokens would separate them better",
          plan.name(), plan.margin(), plan.noise()));
  return {0, watch.seconds()};
}

// Of plans that keep the same layers, and so are one hybrid, the first is measured.
proto::Measurement measure(RunUnderWay& run, const Command& command) {
  StageContext here = context(run);
  const MorphableModel& model = run.placed.model();
  if (command.model() == "teacher")
    return evaluate(model, Routes(model.spec().layers, Route::full()), "teacher", "", here);
  const proto::HybridPlan &plan = plan_of(run, command.model()), &first = first_alike(plan, run.plans);
  for (proto::Measurement known : run.evaluation.measurements()) {
    if (&first == &plan || known.name() != first.name() || known.after() != command.after()) continue;
    known.set_name(plan.name());
    run.observer.note(
        fmt::format("evaluate  {} keeps the same layers as {}: one hybrid, measured once", plan.name(), first.name()));
    return known;
  }
  if (command.after() == "align") return evaluate(model, routes_of(run, plan), plan.name(), command.after(), here);
  return evaluate(hybrid(run, plan, command.after()), routes_of(run, plan), plan.name(), command.after(), here);
}

StageCost evaluate_model(RunUnderWay& run, const Command& command) {
  const Stopwatch watch;
  const proto::Measurement measured = measure(run, command);
  auto& all = *run.evaluation.mutable_measurements();
  const auto old = std::ranges::find_if(all, [&](const proto::Measurement& one) {
    return one.name() == measured.name() && one.after() == measured.after();
  });
  (old == all.end() ? *all.Add() : *old) = measured;  // there, when a start was stopped before this was concluded
  run.observer.measured(measured);
  write(run, run.folder.evaluation_file(), run.evaluation, "evaluate");
  return {0, watch.seconds()};
}

// The plan's hybrid, as the training before has left it.
StageCost train_hybrid(RunUnderWay& run, const Command& command) {
  const proto::HybridPlan& plan = plan_of(run, command.model());
  const MorphableModel student = hybrid(run, plan, training_before(command.stage(), run.config));
  StageContext here = context(run, checkpoints_of(run, name_of(command)));
  const StageCost cost = command.stage() == "distill"
                             ? distill(run.placed.model(), student, routes_of(run, plan), plan.name(), here)
                             : finetune(student, routes_of(run, plan), plan.name(), here);
  const Phase saving(run.watchdog, Work::save, name_of(command));
  save_global(run.folder.hybrid_file(plan.name(), command.stage()), student.all_parameters(), run.placed.mesh(),
              {{"plan", plan.name()}, {"after", command.stage()}});
  return cost;
}

StageCost export_hybrid(RunUnderWay& run, const Command&) {
  const Phase saving(run.watchdog, Work::save, "export");
  const Stopwatch watch;
  const RunConfig& config = run.config;
  const proto::HybridPlan& plan = run.plans.plans(0);
  const NamedTensors whole =
      gather_global(hybrid(run, plan, last_training(config)).all_parameters(), run.placed.mesh());
  HybridSpec spec{run.placed.spec(), config.mixer,
                  std::vector<bool>(static_cast<size_t>(run.placed.spec().layers), false)};
  for (const int64_t layer : plan.full_layers()) spec.full[static_cast<size_t>(layer)] = true;
  const ExportFormat& format = export_format(config.stages.export_.format, spec.model, spec.mixer);
  run.on_rank_0([&] {
    const ExportReport report = export_hugging_face(
        run.folder.export_folder(), format,
        {.source = config.model.path,
         .hybrid = spec,
         .tensors = whole,
         .model_card = model_card(config, run.plans, run.evaluation, run.folder.state().finished())});
    run.observer.exported(report.format, report.tokens, report.largest_difference);
  });
  return {0, watch.seconds()};
}

bool always(const RunConfig&) { return true; }
bool has_milliseconds(const RunConfig& config) { return config.budget.milliseconds > 0.0; }
bool has_gates(const RunConfig& config) { return trains_gates(config.stages); }
bool has_distill(const RunConfig& config) { return config.stages.distill.tokens > 0; }
bool has_finetune(const RunConfig& config) { return config.stages.finetune.tokens > 0; }
bool has_export(const RunConfig& config) { return config.stages.export_.enabled; }

Files nothing(const RunUnderWay&, const Command&) { return {}; }
Files latency_file(const RunUnderWay& run, const Command&) { return {run.folder.latency_file()}; }
Files gates_file(const RunUnderWay& run, const Command&) { return {run.folder.gates_file()}; }
Files branches_file(const RunUnderWay& run, const Command&) { return {run.folder.branches_file()}; }
Files hybrid_file(const RunUnderWay& run, const Command& command) {
  return {run.folder.hybrid_file(command.model(), command.stage())};
}

Files branches_if_judged(const RunUnderWay& run, const Command&) {
  return asks_a_judge(run.config.stages) ? Files{run.folder.branches_file()} : Files();
}

// What the model that a stage begins with is read from.
Files model_files(const RunUnderWay& run, const Command& command) {
  const std::string& stage = command.stage();
  const std::string plan = stage == "export" ? methods_of(run.config.stages).front() : command.model();
  const std::string after = stage == "evaluate" ? command.after() : training_before(stage, run.config);
  Files files = {run.folder.branches_file()};
  if (!after.empty() && after != "align") files.push_back(run.folder.hybrid_file(plan, after));
  return files;
}

constexpr Stage kStages[] = {
    // name, mesh, is_in, reads, writes, run
    {"latency", nullptr, has_milliseconds, nothing, latency_file, keep_latency},
    {"align", "align", always, nothing, branches_file, align_branches},
    {"select", "select", has_gates, branches_file, gates_file, select_layers},
    {"discretize", nullptr, always, branches_if_judged, nothing, discretize_gates},
    {"evaluate", "evaluate", always, model_files, nothing, evaluate_model},
    {"distill", "distill", has_distill, model_files, hybrid_file, train_hybrid},
    {"finetune", "finetune", has_finetune, model_files, hybrid_file, train_hybrid},
    {"export", "evaluate", has_export, model_files, nothing, export_hybrid},
};

}  // namespace

void RunUnderWay::on_rank_0(const std::function<void()>& work) const {
  on_all_ranks(world, [&] {
    if (leads()) work();
  });
}

const Stage& stage_named(const std::string& name) {
  const auto found = std::ranges::find(kStages, name, &Stage::name);
  TORCH_CHECK(found != std::end(kStages), "unknown stage ", name);
  return *found;
}

void place(RunUnderWay& run, const char* mesh, bool with_branches) {
  const Phase loading(run.watchdog, Work::load, mesh);
  run.placed.place(layout_of(mesh, run.config, run.placed.spec(), run.world.size()));
  if (with_branches && !run.placed.has_trained_branches()) run.placed.read_branches(run.folder.branches_file());
}

proto::LayerLatency latency_of_run(const RunConfig& config, PlacedModel& placed, const RunFolder& folder, bool fresh,
                                   Communicator& world) {
  proto::LayerLatency latency;
  if (config.budget.milliseconds == 0.0) return latency;
  if (!fresh) read_on_all_ranks(folder.latency_file(), latency, world);
  if (latency.full().empty()) {
    const Stopwatch watch;
    placed.place(layout_of("evaluate", config, placed.spec(), world.size()));
    latency = layer_latency(placed.model(), config.budget.length, placed.mesh());
    latency.mutable_provenance()->set_seconds(watch.seconds());
  }
  on_all_ranks(world, [&] { check_methods(config.stages, budget_of(config, placed, latency)); });
  return latency;
}

}  // namespace flashmorph
