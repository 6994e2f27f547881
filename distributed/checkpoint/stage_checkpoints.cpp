#include "distributed/checkpoint/stage_checkpoints.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/base/piecewise_copy.h"
#include "core/io/output_file.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

// The work's outcome as a message: what went wrong on a thread must reach the ranks' next meeting.
template <class Work>
std::future<proto::SaveReport> in_background(Work work) {
  return std::async(std::launch::async, [work = std::move(work)] {
    proto::SaveReport report;
    try {
      work(report);
    } catch (const std::exception& failure) {
      report.set_error(failure.what());
    }
    return report;
  });
}

int64_t next_due(int64_t step, int64_t every) {
  return every == 0 ? std::numeric_limits<int64_t>::max() : (step / every + 1) * every;
}

}  // namespace

StageCheckpoints::StageCheckpoints(CheckpointPlace place, const CheckpointSection& section, Mesh& mesh, Regions regions,
                                   CheckpointListener& listener, google::protobuf::Message* own)
    : place_(std::move(place)),
      section_(section),
      mesh_(mesh),
      regions_(std::move(regions)),
      listener_(listener),
      own_(own),
      folders_{place_.folder, place_.stage},
      next_step_(next_due(0, section.every)) {}

StageCheckpoints::~StageCheckpoints() {
  if (in_background_.valid()) in_background_.wait();
}

proto::StageProgress StageCheckpoints::resume() {
  if (is_off()) return {};
  const std::vector<int64_t> steps = steps_on_disk();
  for (const int64_t step : steps) {
    const std::unique_ptr<SavedCheckpoint> saved = opened(step);
    if (!saved) continue;
    on_all_ranks(mesh_.world(), [&] {
      const c10::NoGradGuard no_gradient;
      for (const Region& region : regions_) region.values.copy_(saved->read(region));
      if (own_ != nullptr) saved->index().own().UnpackTo(own_);
    });
    saved_step_ = step;
    next_step_ = next_due(step, section_.every);
    return saved->index().progress();
  }
  if (!steps.empty()) listener_.warn(place_.stage + ": no whole checkpoint is left; the stage starts over");
  return {};
}

// Newest first, as rank 0 sees them: ranks may see a shared file system at different moments. Removes what a save that
// never ended has left.
std::vector<int64_t> StageCheckpoints::steps_on_disk() {
  std::string steps;
  on_all_ranks(mesh_.world(), [&] {
    if (!leads()) return;
    const std::vector<int64_t> known = folders_.steps();
    for (const int64_t step : known) steps += std::to_string(step) + " ";
    if (const int64_t latest = folders_.latest_step(); latest > 0 && std::ranges::find(known, latest) == known.end())
      listener_.warn(folders_.whole(latest).string() + " is missing, which " + folders_.latest().string() +
                     " names as the newest checkpoint");
    place_.files->make_folder(place_.folder);
    folders_.remove_hidden();
    sync_folder_of(place_.folder);
  });
  std::istringstream text(mesh_.world().broadcast_text(steps, 0));
  std::vector<int64_t> known;
  for (int64_t step = 0; text >> step;) known.push_back(step);
  return known;
}

// The checkpoint, when it is whole and of this run: each rank reads its share of the files through.
std::unique_ptr<SavedCheckpoint> StageCheckpoints::opened(int64_t step) {
  std::unique_ptr<SavedCheckpoint> saved;
  try {
    on_all_ranks(mesh_.world(), [&] {
      saved = std::make_unique<SavedCheckpoint>(folders_.whole(step));
      const proto::CheckpointIndex& index = saved->index();
      if (index.stage() != place_.stage || index.progress().step() != step)
        throw BadInput(folders_.whole(step).string(),
                       "is of " + index.stage() + ", step " + std::to_string(index.progress().step()));
      for (const auto& [what, hash] : place_.frozen)
        if (const auto found = index.frozen().find(what); found == index.frozen().end() || found->second != hash)
          throw BadInput(folders_.whole(step).string(), "was trained from another " + what);
      if (own_ != nullptr && !index.own().UnpackTo(std::unique_ptr<google::protobuf::Message>(own_->New()).get()))
        throw BadInput(folders_.whole(step).string(), "has no " + own_->GetTypeName() + " of the stage");
      for (const Region& region : regions_) saved->require(region);
      for (int i = mesh_.world().rank(); i < index.shards_size(); i += mesh_.world().size())
        saved->verify(index.shards(i));
    });
  } catch (const BadInput& fault) {
    on_all_ranks(mesh_.world(), [&] {
      if (!leads()) return;
      place_.files->remove(folders_.aside(step));
      place_.files->rename(folders_.whole(step), folders_.aside(step));
    });
    listener_.warn(std::string(fault.what()) + "; moved to " + folders_.aside(step).string() +
                   ", the checkpoint before it is tried");
    return nullptr;
  }
  return saved;
}

void StageCheckpoints::save_when_due(const proto::StageProgress& progress) {
  if (is_off()) return;
  if (phase_ != Phase::idle) go_on(/*wait=*/false);
  if (phase_ == Phase::idle && progress.step() >= next_step_) start(progress);
}

std::string StageCheckpoints::save(const proto::StageProgress& progress) {
  if (is_off() || progress.step() == 0) return "nothing was to be saved";
  go_on(/*wait=*/true);
  if (saved_step_ != progress.step()) {
    start(progress);
    go_on(/*wait=*/true);
  }
  if (saved_step_ == progress.step()) return "it is in " + folders_.whole(saved_step_).string();
  return saved_step_ == 0 ? "nothing of the stage is on disk"
                          : "the last one on disk is " + folders_.whole(saved_step_).string();
}

// Copies what is trained, so that it may change while it is written.
ShardCopy StageCheckpoints::copies() const {
  ShardCopy shard;
  std::vector<at::Tensor> trained;
  for (const Region& region : regions_) {
    if (!region.is_saved_here) continue;
    shard.slices.push_back(slice_of(region));
    trained.push_back(region.values);
  }
  if (!trained.empty()) shard.values = copied_to_host(trained, copying_with(trained.front().device()));
  return shard;
}

void StageCheckpoints::start(const proto::StageProgress& progress) {
  since_start_ = Stopwatch();
  saving_ = proto::CheckpointIndex();
  saving_.set_stage(place_.stage);
  *saving_.mutable_progress() = progress;
  saving_.mutable_frozen()->insert(place_.frozen.begin(), place_.frozen.end());
  if (own_ != nullptr) saving_.mutable_own()->PackFrom(*own_);
  next_step_ = next_due(progress.step(), section_.every);
  in_background_ = in_background([files = place_.files, hidden = folders_.hidden(progress.step()),
                                  rank = mesh_.world().rank(), shard = copies()](proto::SaveReport& report) {
    *report.mutable_shard() = write_shard(*files, hidden, rank, shard);
  });
  phase_ = Phase::writing_shards;
}

// Takes the save under way as far as it has come; to its end with `wait`.
void StageCheckpoints::go_on(bool wait) {
  while (phase_ != Phase::idle) {
    if (wait && in_background_.valid()) in_background_.wait();
    if (!wait && any_rank_busy()) return;
    conclude_phase();
  }
}

bool StageCheckpoints::any_rank_busy() {
  const bool busy =
      in_background_.valid() && in_background_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  at::Tensor any = at::full({1}, static_cast<int64_t>(busy), at::kLong);
  mesh_.world().all_reduce(any, Reduction::max);
  return any.item<int64_t>() != 0;
}

// All ranks have done their part of the phase: the next one, unless somebody failed.
void StageCheckpoints::conclude_phase() {
  const proto::SaveReport mine = in_background_.valid() ? in_background_.get() : proto::SaveReport();
  proto::CheckpointIndex index = saving_;
  std::string error;
  for (const std::string& text : gather_text(mine.SerializeAsString(), mesh_.world())) {
    proto::SaveReport report;
    report.ParseFromString(text);
    if (error.empty()) error = report.error();
    if (report.shard().slices_size() > 0) *index.add_shards() = report.shard();
  }
  if (!error.empty()) {
    phase_ = Phase::idle;
    if (leads()) folders_.remove_hidden();
    listener_.warn(place_.stage + ": the checkpoint after step " + std::to_string(saving_.progress().step()) +
                   " could not be written: " + error +
                   (saved_step_ == 0 ? "" : "; the one after step " + std::to_string(saved_step_) + " stays"));
    return;
  }
  if (phase_ == Phase::publishing) {
    phase_ = Phase::idle;
    saved_step_ = saving_.progress().step();
    seconds_ = since_start_.seconds();
    listener_.saved(saved_step_, seconds_);
    return;
  }
  phase_ = Phase::publishing;
  if (!leads()) return;
  in_background_ = in_background([files = place_.files, folders = folders_, index = std::move(index),
                                  keep = section_.keep](proto::SaveReport&) { publish(*files, folders, index, keep); });
}

}  // namespace flashmorph
