#include "distributed/coordinator/coordinator.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/base/bad_input.h"
#include "core/export/hugging_face.h"
#include "distributed/checkpoint/global_tensors.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/coordinator/plans.h"
#include "distributed/coordinator/results.h"
#include "distributed/parallel/together.h"
#include "distributed/stages/align.h"
#include "distributed/stages/evaluate.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"

namespace flashmorph {
namespace {

proto::GateSnapshot snapshot_of(const GateTrajectory& trajectory, const std::string& method) {
  proto::GateSnapshot snapshot;
  snapshot.set_method(method);
  for (size_t step = 0; step < trajectory.alpha.size(); ++step) {
    proto::GateStep& moved = *snapshot.add_history();
    moved.set_step(static_cast<int64_t>(step) + 1);
    moved.mutable_alpha()->Add(trajectory.alpha[step].begin(), trajectory.alpha[step].end());
  }
  *snapshot.mutable_alpha() = snapshot.history().rbegin()->alpha();
  return snapshot;
}

}  // namespace

Coordinator::Coordinator(StageContext context, MorphableModel& model, RunFolder& folder)
    : context_(context), model_(model), folder_(folder) {}

void Coordinator::run() {
  align_branches();
  select_and_discretize();
  train_hybrids();
  export_hybrid();
}

void Coordinator::align_branches() {
  model_.add_branches(context_.config.mixer, context_.config.run.seed);
  if (finished("align")) {
    context_.observer.skipped("align", folder_.branches_file().string());
    together(context_.mesh.world(), [&] {
      read_into(model_.branch_parameters(), Checkpoint::open_file(folder_.branches_file()), model_.placement());
    });
    return;
  }
  const StageCost cost = align(model_, context_);
  save_global(folder_.branches_file(), model_.branch_parameters(), context_.mesh,
              {{"mixer", context_.config.mixer.kind}, {"decay", context_.config.mixer.decay}});
  finish("align", cost);
}

void Coordinator::select_and_discretize() {
  if (finished("discretize")) {
    context_.observer.skipped("select", folder_.plan_file().string());
    read(folder_.plan_file(), plans_);
    return;
  }
  const int64_t keep_full = context_.config.budget.full_layers_of(model_.layer_count());
  const std::string& method = context_.config.stages.select.method;
  std::vector<double> gates;
  StageCost cost;
  if (method == "flashmorph") {
    const auto [trajectory, selected] = select_gates(model_, keep_full, context_);
    proto::GateSnapshot snapshot = snapshot_of(trajectory, method);
    cost = selected;
    *snapshot.mutable_provenance() = provenance("select", cost);
    write(folder_.gates_file(), snapshot);
    gates = trajectory.alpha.back();
  }
  plans_ = discretize(context_.config, model_.layer_count(), keep_full, gates);
  *plans_.mutable_provenance() = provenance("discretize", cost);
  write(folder_.plan_file(), plans_);
  finish("select", cost);
  finish("discretize", {});
}

void Coordinator::train_hybrids() {
  read(folder_.evaluation_file(), evaluation_);  // a run that was stopped has measured some of the models
  if (finished("evaluate")) {
    context_.observer.skipped("evaluate", folder_.evaluation_file().string());
    return;
  }
  measure(model_, Routes(model_.layer_count(), Route::full()), "teacher", "");
  for (const proto::HybridPlan& plan : plans_.plans()) measure(model_, routes_of(plan), plan.name(), "align");
  for (const proto::HybridPlan& plan : plans_.plans()) train_hybrid(plan);
  finish("evaluate", {});
}

void Coordinator::measure(const MorphableModel& model, const Routes& routes, const std::string& name,
                          const std::string& after) {
  const auto& done = evaluation_.measurements();
  if (std::any_of(done.begin(), done.end(), [&](const proto::Measurement& measured) {
        return measured.name() == name && measured.after() == after;
      }))
    return;
  *evaluation_.add_measurements() = evaluate(model, routes, name, after, context_);
  *evaluation_.mutable_provenance() = provenance("evaluate", {});
  write(folder_.evaluation_file(), evaluation_);
}

// One plan's hybrid: each training stage's result is on disk before the next begins.
void Coordinator::train_hybrid(const proto::HybridPlan& plan) {
  const Routes routes = routes_of(plan);
  const MorphableModel hybrid = model_.hybrid(routes);
  const auto stage = [&](const std::string& name, int64_t tokens, const auto& train) {
    if (tokens == 0) return;
    const std::string step = name + " " + plan.name();
    const std::filesystem::path file = folder_.hybrid_file(plan.name(), name);
    if (finished(step)) {
      context_.observer.skipped(step, file.string());
      together(context_.mesh.world(),
               [&] { read_into(hybrid.all_parameters(), Checkpoint::open_file(file), hybrid.placement()); });
      return;
    }
    const StageCost cost = train();
    save_global(file, hybrid.all_parameters(), context_.mesh, {{"plan", plan.name()}, {"after", name}});
    finish(step, cost);
  };
  stage("distill", context_.config.stages.distill.tokens,
        [&] { return distill(model_, hybrid, routes, plan.name(), context_); });
  stage("finetune", context_.config.stages.finetune.tokens,
        [&] { return finetune(hybrid, routes, plan.name(), context_); });
  if (last_training() != "align") measure(hybrid, routes, plan.name(), last_training());
}

void Coordinator::export_hybrid() {
  if (!context_.config.stages.export_.enabled) return;
  if (finished("export")) {
    context_.observer.skipped("export", folder_.export_folder().string());
    return;
  }
  const proto::HybridPlan& plan = plans_.plans(0);
  const MorphableModel hybrid = model_.hybrid(routes_of(plan));
  if (last_training() != "align")
    together(context_.mesh.world(), [&] {
      read_into(hybrid.all_parameters(), Checkpoint::open_file(folder_.hybrid_file(plan.name(), last_training())),
                hybrid.placement());
    });
  const NamedTensors whole = gather_global(hybrid.all_parameters(), context_.mesh);
  together(context_.mesh.world(), [&] {
    if (context_.mesh.world().rank() != 0) return;
    export_hugging_face(folder_.export_folder(),
                        {.source = context_.config.model.path,
                         .tensors = whole,
                         .full_layers = {plan.full_layers().begin(), plan.full_layers().end()},
                         .mixer = context_.config.mixer,
                         .model_card = model_card(context_.config, plans_, evaluation_)});
  });
  finish("export", {});
}

// Rank 0's view of the folder, made common: ranks may see a shared file system at different moments.
bool Coordinator::finished(const std::string& stage) {
  at::Tensor known = at::full({1}, static_cast<int64_t>(folder_.finished(stage)), at::kLong);
  context_.mesh.world().broadcast(known, 0);
  return known.item<int64_t>() != 0;
}

void Coordinator::finish(const std::string& stage, const StageCost& cost) {
  together(context_.mesh.world(), [&] {
    if (context_.mesh.world().rank() == 0) folder_.finish(stage, cost.tokens, cost.seconds);
  });
  context_.observer.finished(stage, cost.seconds);
}

void Coordinator::write(const std::filesystem::path& file, const google::protobuf::Message& message) {
  together(context_.mesh.world(), [&] {
    if (context_.mesh.world().rank() == 0) write_message(file, message);
  });
}

// Rank 0 reads, all ranks get the same message; it stays empty when there is no such file yet.
void Coordinator::read(const std::filesystem::path& file, google::protobuf::Message& message) {
  Communicator& world = context_.mesh.world();
  together(world, [&] {
    if (world.rank() == 0 && std::filesystem::exists(file)) read_message(file, message);
  });
  message.ParseFromString(world.broadcast_text(message.SerializeAsString(), 0));
}

proto::Provenance Coordinator::provenance(const std::string& stage, const StageCost& cost) const {
  proto::Provenance origin;
  origin.set_stage(stage);
  origin.set_tokens(cost.tokens);
  origin.set_seconds(cost.seconds);
  origin.set_seed(context_.config.run.seed);
  origin.set_source_hash(folder_.state().source_hash());
  return origin;
}

Routes Coordinator::routes_of(const proto::HybridPlan& plan) const {
  Routes routes(model_.layer_count(), Route::linear());
  for (const int64_t layer : plan.full_layers()) {
    if (layer < 0 || layer >= model_.layer_count())
      throw BadInput(folder_.plan_file().string(), "keeps layer " + std::to_string(layer) + " of a model of " +
                                                       std::to_string(model_.layer_count()) + " layers");
    routes[layer] = Route::full();
  }
  return routes;
}

std::string Coordinator::last_training() const {
  if (context_.config.stages.finetune.tokens > 0) return "finetune";
  if (context_.config.stages.distill.tokens > 0) return "distill";
  return "align";
}

}  // namespace flashmorph
