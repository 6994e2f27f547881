#include "distributed/coordinator/coordinator.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <optional>

#include "core/base/bad_input.h"
#include "core/export/hugging_face.h"
#include "core/select/selector.h"
#include "distributed/checkpoint/global_tensors.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/coordinator/commands.h"
#include "distributed/coordinator/plans.h"
#include "distributed/coordinator/results.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/parallel/stage_layouts.h"
#include "distributed/stages/align.h"
#include "distributed/stages/evaluate.h"
#include "distributed/stages/frontier.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/judge.h"
#include "distributed/stages/latency.h"
#include "distributed/stages/select.h"

namespace flashmorph {
namespace {

int64_t element_bytes(PlacedModel& placed) {
  return static_cast<int64_t>(c10::elementSize(placed.model().placement().dtype));
}

LayerBudget budget_of(const RunConfig& config, PlacedModel& placed, const proto::LayerLatency& latency) {
  return layer_budget(config.budget, placed.spec(), element_bytes(placed), numbers_of(latency));
}

constexpr double kNoteEvery = 10.0;  // seconds

int64_t peak_bytes() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return int64_t{1024} * used.ru_maxrss;
}

}  // namespace

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

Coordinator::Coordinator(RunInputs inputs, Communicator& world, PlacedModel& placed, RunFolder& folder)
    : inputs_(inputs), world_(world), placed_(placed), folder_(folder) {}

void Coordinator::run() {
  recall();
  for (auto command = agreed_next_command(); !command.stage().empty(); command = agreed_next_command()) {
    if (const StopReason reason = inputs_.stop.agreed(world_); reason != StopReason::none)
      throw Stopped("stopped before " + name_of(command) + ": " + text_of(reason));
    const int64_t bytes_before = placed_.bytes_moved();
    const StageCost cost = execute(command);
    proto::StageReport report;
    report.set_rank(world_.rank());
    report.set_tokens(cost.tokens);
    report.set_seconds(cost.seconds);
    report.set_bytes_moved(placed_.bytes_moved() - bytes_before);
    report.set_peak_bytes(peak_bytes());
    report.set_plan_hash(plans_.plans().empty() ? "" : hash_of(plans_));
    conclude(command, report);
  }
}

// What earlier starts of this run have left on disk.
void Coordinator::recall() {
  require_as_written(folder_.latency_file());
  require_as_written(folder_.gates_file());
  read_on_all_ranks(folder_.gates_file(), gates_, world_);
  if (finished("discretize")) read_on_all_ranks(folder_.plan_file(), plans_, world_);
  read_on_all_ranks(folder_.evaluation_file(), evaluation_, world_);
  on_all_ranks(world_, [&] {
    if (!leads()) return;
    if (const std::string expected = folder_.state().plan_hash(); !expected.empty() && expected != hash_of(plans_))
      throw BadInput(folder_.plan_file().string(), "is not what this run's discretize wrote: its plans' hash is " +
                                                       hash_of(plans_) + ", expected " + expected);
    for (const proto::StageResult& result : folder_.state().finished())
      inputs_.observer.skipped(result.stage(), folder_.path().string());
    forget_checkpoints();
  });
}

proto::StageCommand Coordinator::agreed_next_command() {
  proto::StageCommand command;
  if (leads()) {
    command = next_command(inputs_.config, folder_.state(), plans_);
    command.set_plan_hash(folder_.state().plan_hash());
  }
  command.ParseFromString(world_.broadcast_text(command.SerializeAsString(), 0));
  on_all_ranks(world_, [&] { check_plans(command); });
  return command;
}

// Ranks with other plans would run another model, and might wait for each other forever.
void Coordinator::check_plans(const proto::StageCommand& command) const {
  const std::string held = plans_.plans().empty() ? "" : hash_of(plans_);
  if (held != command.plan_hash())
    throw BadInput(folder_.plan_file().string(), "rank " + std::to_string(world_.rank()) +
                                                     " holds other plans than rank 0 before " +
                                                     (command.stage().empty() ? "the run's end" : name_of(command)) +
                                                     ": their hash is " + held + ", expected " + command.plan_hash());
}

// A file of the run, before it is read. Collective.
void Coordinator::require_as_written(const std::filesystem::path& file) {
  on_all_ranks(world_, [&] {
    if (leads()) folder_.require_as_written(file);
  });
}

StageCost Coordinator::execute(const proto::StageCommand& command) {
  const Stage& here = stage(command.stage());
  const Stage::Files files = here.reads(folder_, inputs_.config, command);
  for (const std::filesystem::path& file : files) require_as_written(file);
  if (here.mesh != nullptr) place(here.mesh, std::ranges::count(files, folder_.branches_file()) > 0);
  return (this->*here.run)(command);
}

// Every rank has done its part; the stage is finished once rank 0 has written so.
void Coordinator::conclude(const proto::StageCommand& command, proto::StageReport report) {
  const Phase saving(inputs_.watchdog, Work::save, name_of(command));
  std::vector<proto::StageReport> reports;
  for (const std::string& text : gather_text(report.SerializeAsString(), world_))
    reports.emplace_back().ParseFromString(text);
  proto::StageResult result;
  result.set_stage(name_of(command));
  result.set_tokens(report.tokens());
  result.set_seconds(report.seconds());
  result.set_ranks(world_.size());
  for (const proto::StageReport& theirs : reports) {
    result.set_bytes_moved(result.bytes_moved() + theirs.bytes_moved());
    result.set_peak_bytes(std::max(result.peak_bytes(), theirs.peak_bytes()));
  }
  on_all_ranks(world_, [&] {
    if (!leads()) return;
    folder_.finish(result, stage(command.stage()).writes(folder_, command), report.plan_hash());
    forget_checkpoints();
  });
  inputs_.observer.finished(result.stage(), result.seconds());
}

StageCost Coordinator::keep_latency(const proto::StageCommand&) {
  proto::LayerLatency latency = inputs_.latency;
  const StageCost cost{0, latency.provenance().seconds()};
  *latency.mutable_provenance() = provenance("latency", cost);
  write(folder_.latency_file(), latency);
  return cost;
}

StageCost Coordinator::align_branches(const proto::StageCommand&) {
  placed_.start_branches();
  StageContext here = context("align");
  const StageCost cost = align(placed_.model(), here);
  const Phase saving(inputs_.watchdog, Work::save, "align");
  save_global(folder_.branches_file(), placed_.model().branch_parameters(), placed_.mesh(),
              {{"mixer", inputs_.config.mixer.kind}});
  placed_.keep_branches();
  return cost;
}

StageCost Coordinator::select_layers(const proto::StageCommand&) {
  StageContext here = context("select");
  const auto [gates, cost] = select_gates(placed_.model(), budget(), here);
  gates_ = gates;
  gates_.set_method(inputs_.config.stages.select.method);
  *gates_.mutable_provenance() = provenance("select", cost);
  write(folder_.gates_file(), gates_);
  return cost;
}

// Every rank picks, as all of them take part in judging.
void Coordinator::pick_by_judging() {
  place("evaluate", /*with_branches=*/true);
  StageContext here = context();
  std::optional<HardMixtureJudge> judge;  // made for the first set that is not known yet
  Stopwatch since_note;
  int64_t count = 0;
  JudgedSets judged(folder_.judgements_file(), world_, [&](const std::vector<int64_t>& full_layers) {
    if (!judge) judge.emplace(placed_.model(), here);
    const proto::JudgedSet set = judge->judge(full_layers);
    if (++count; since_note.seconds() > kNoteEvery) {
      inputs_.observer.note(fmt::format("discretize  {} sets of layers judged, the last one's recall {:.1f} %", count,
                                        100.0 * set.recall()));
      since_note = Stopwatch();
    }
    return set;
  });
  plans_ = discretize(inputs_.config, budget(), gates_, &judged);
  judged.save();
}

// Rank 0 decides and writes; every rank gets the plans.
StageCost Coordinator::discretize_gates(const proto::StageCommand&) {
  const Stopwatch watch;
  if (asks_a_judge(inputs_.config.stages)) {
    pick_by_judging();
  } else {
    on_all_ranks(world_, [&] {
      if (leads()) plans_ = discretize(inputs_.config, budget(), gates_);
    });
  }
  for (const proto::FrontierPoint& point :
       frontier(gates_, inputs_.config.stages.select, budget(), placed_.spec().kv_bytes(element_bytes(placed_))))
    *plans_.add_frontier() = point;
  *plans_.mutable_provenance() = provenance("discretize", {});
  plans_.ParseFromString(world_.broadcast_text(plans_.SerializeAsString(), 0));
  write(folder_.plan_file(), plans_);
  for (const proto::HybridPlan& plan : plans_.plans())
    if (selector_named(plan.name()).needs_gates() && plan.margin() <= plan.noise())
      inputs_.observer.warn(plan.name() + ": the pick's margin, " + std::to_string(plan.margin()) +
                            ", is within the gates' noise, " + std::to_string(plan.noise()) +
                            "; more tokens would separate them better");
  return {0, watch.seconds()};
}

// Of plans that keep the same layers, and so are one hybrid, the first is measured.
proto::Measurement Coordinator::measure(const proto::StageCommand& command) {
  StageContext here = context();
  if (command.model() == "teacher")
    return evaluate(placed_.model(), Routes(placed_.spec().layers, Route::full()), "teacher", "", here);
  const proto::HybridPlan &plan = plan_of(command.model()), &first = first_alike(plan, plans_);
  for (proto::Measurement known : evaluation_.measurements()) {
    if (&first == &plan || known.name() != first.name() || known.after() != command.after()) continue;
    known.set_name(plan.name());
    inputs_.observer.note(
        fmt::format("evaluate  {} keeps the same layers as {}: one hybrid, measured once", plan.name(), first.name()));
    return known;
  }
  if (command.after() == "align") return evaluate(placed_.model(), routes_of(plan), plan.name(), command.after(), here);
  return evaluate(hybrid(plan, command.after()), routes_of(plan), plan.name(), command.after(), here);
}

StageCost Coordinator::evaluate_model(const proto::StageCommand& command) {
  const Stopwatch watch;
  const proto::Measurement measured = measure(command);
  auto& all = *evaluation_.mutable_measurements();
  all.erase(
      std::remove_if(all.begin(), all.end(),  // of a start that was stopped before it was concluded
                     [&](const auto& old) { return old.name() == measured.name() && old.after() == measured.after(); }),
      all.end());
  *evaluation_.add_measurements() = measured;
  *evaluation_.mutable_provenance() = provenance("evaluate", {});
  inputs_.observer.measured(measured);
  write(folder_.evaluation_file(), evaluation_);
  return {0, watch.seconds()};
}

StageCost Coordinator::distill_hybrid(const proto::StageCommand& command) {
  const proto::HybridPlan& plan = plan_of(command.model());
  const MorphableModel student = hybrid(plan, "align");
  StageContext here = context(name_of(command));
  const StageCost cost = distill(placed_.model(), student, routes_of(plan), plan.name(), here);
  save_hybrid(student, command);
  return cost;
}

StageCost Coordinator::finetune_hybrid(const proto::StageCommand& command) {
  const proto::HybridPlan& plan = plan_of(command.model());
  const MorphableModel student = hybrid(plan, training_before("finetune", inputs_.config));
  StageContext here = context(name_of(command));
  const StageCost cost = finetune(student, routes_of(plan), plan.name(), here);
  save_hybrid(student, command);
  return cost;
}

void Coordinator::save_hybrid(const MorphableModel& hybrid, const proto::StageCommand& command) {
  const Phase saving(inputs_.watchdog, Work::save, name_of(command));
  save_global(folder_.hybrid_file(command.model(), command.stage()), hybrid.all_parameters(), placed_.mesh(),
              {{"plan", command.model()}, {"after", command.stage()}});
}

StageCost Coordinator::export_hybrid(const proto::StageCommand&) {
  const Phase saving(inputs_.watchdog, Work::save, "export");
  const Stopwatch watch;
  const proto::HybridPlan& plan = plans_.plans(0);
  const NamedTensors whole =
      gather_global(hybrid(plan, last_training(inputs_.config)).all_parameters(), placed_.mesh());
  HybridSpec spec{placed_.spec(), inputs_.config.mixer,
                  std::vector<bool>(static_cast<size_t>(placed_.spec().layers), false)};
  for (const int64_t layer : plan.full_layers()) spec.full[static_cast<size_t>(layer)] = true;
  const ExportFormat& format = export_format(inputs_.config.stages.export_.format, spec.model, spec.mixer);
  on_all_ranks(world_, [&] {
    if (!leads()) return;
    const ExportReport report = export_hugging_face(folder_.export_folder(), format,
                                                    {.source = inputs_.config.model.path,
                                                     .hybrid = spec,
                                                     .tensors = whole,
                                                     .model_card = model_card(inputs_.config, plans_, evaluation_)});
    inputs_.observer.exported(report.format, report.tokens, report.largest_difference);
  });
  return {0, watch.seconds()};
}

void Coordinator::place(const char* mesh, bool with_branches) {
  const Phase loading(inputs_.watchdog, Work::load, mesh);
  placed_.place(layout_of(mesh, inputs_.config, placed_.spec(), world_.size()));
  if (with_branches && !placed_.has_trained_branches()) placed_.read_branches(folder_.branches_file());
}

// The plan's model after a training stage.
MorphableModel Coordinator::hybrid(const proto::HybridPlan& plan, const std::string& after) {
  MorphableModel hybrid = placed_.model().hybrid(routes_of(plan));
  if (after == "align") return hybrid;
  const std::filesystem::path file = folder_.hybrid_file(first_alike(plan, plans_).name(), after);
  on_all_ranks(world_, [&] { read_into(hybrid.all_parameters(), ModelFiles::open_file(file), hybrid.placement()); });
  return hybrid;
}

LayerBudget Coordinator::budget() { return budget_of(inputs_.config, placed_, inputs_.latency); }

StageContext Coordinator::context(const std::string& command) {
  return {
      inputs_.config,   placed_.mesh(), inputs_.corpus,   inputs_.passkeys,
      inputs_.observer, inputs_.stop,   inputs_.watchdog, command.empty() ? CheckpointPlace() : checkpoints_of(command),
      inputs_.tasks};
}

// A checkpoint refers to the weights that it does not hold: the teacher's, and behind align the branches. Rank 0
// compares.
CheckpointPlace Coordinator::checkpoints_of(const std::string& command) {
  CheckpointPlace place{.folder = folder_.checkpoints_folder(), .stage = command};
  on_all_ranks(world_, [&] {
    if (!leads()) return;
    place.frozen["teacher"] = folder_.state().source_hash();
    if (command != "align") place.frozen["branches"] = folder_.sha256_as_written(folder_.branches_file());
  });
  return place;
}

// A finished stage is on disk. On rank 0.
void Coordinator::forget_checkpoints() {
  for (const proto::StageResult& result : folder_.state().finished())
    StageFolders{folder_.checkpoints_folder(), result.stage()}.remove_all();
}

// Rank 0's view of the folder, made common: ranks may see a shared file system at different moments.
bool Coordinator::finished(const std::string& stage) {
  at::Tensor known = at::full({1}, static_cast<int64_t>(folder_.finished(stage)), at::kLong);
  world_.broadcast(known, 0);
  return known.item<int64_t>() != 0;
}

void Coordinator::write(const std::filesystem::path& file, const google::protobuf::Message& message) {
  const Phase saving(inputs_.watchdog, Work::save, file.filename().string());
  on_all_ranks(world_, [&] {
    if (leads()) write_message(file, message);
  });
}

proto::Provenance Coordinator::provenance(const std::string& stage, const StageCost& cost) const {
  proto::Provenance origin;
  origin.set_stage(stage);
  origin.set_tokens(cost.tokens);
  origin.set_seconds(cost.seconds);
  origin.set_seed(inputs_.config.run.seed);
  origin.set_source_hash(folder_.state().source_hash());
  return origin;
}

const proto::HybridPlan& Coordinator::plan_of(const std::string& name) const {
  for (const proto::HybridPlan& plan : plans_.plans())
    if (plan.name() == name) return plan;
  throw BadInput(folder_.plan_file().string(), "has no plan named " + name);
}

Routes Coordinator::routes_of(const proto::HybridPlan& plan) const {
  const int64_t layers = placed_.spec().layers;
  for (const int64_t layer : plan.full_layers())
    if (layer < 0 || layer >= layers)
      throw BadInput(folder_.plan_file().string(),
                     "keeps layer " + std::to_string(layer) + " of a model of " + std::to_string(layers) + " layers");
  return routes_that_keep({plan.full_layers().begin(), plan.full_layers().end()}, layers);
}

}  // namespace flashmorph
