#pragma once

#include <future>
#include <map>
#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/config/run_config.h"
#include "distributed/checkpoint/checkpoint_files.h"
#include "distributed/checkpoint/saved_checkpoint.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

// Where a stage's checkpoints lie, and what they refer to.
struct CheckpointPlace {
  std::filesystem::path folder = {};               // RUN/checkpoints; empty: none are read or written
  std::string stage = {};                          // "select", "distill uniform"
  std::map<std::string, std::string> frozen = {};  // on rank 0: SHA-256 of what the checkpoints refer to, by what it is
  FileOperations* files = &real_files();
};

// What becomes of a stage's checkpoints, told on every rank.
class CheckpointListener {
 public:
  virtual ~CheckpointListener() = default;
  virtual void warn(const std::string& warning) {}
  // A checkpoint after so many steps is whole on disk; it took so long since it was copied.
  virtual void saved(int64_t step, double seconds) {}
};

// A training stage's checkpoints: what it trains is copied at a step, and written and synced in the background while
// the steps go on. Every rank that holds something writes a file of its own; rank 0 then writes the index and makes the
// checkpoint visible. A save that fails is told as a warning; the last good checkpoint stays. All calls are collective.
class StageCheckpoints {
 public:
  // `regions` share storage with what is trained; they, `mesh`, `listener` and `own` outlive this. own: what the stage
  // keeps beside its tensors, saved and read back with them; null: nothing.
  StageCheckpoints(CheckpointPlace place, const CheckpointSection& section, Mesh& mesh, Regions regions,
                   CheckpointListener& listener, google::protobuf::Message* own = nullptr);
  ~StageCheckpoints();  // waits for the writing thread, not for the other ranks
  StageCheckpoints(const StageCheckpoints&) = delete;
  StageCheckpoints& operator=(const StageCheckpoints&) = delete;

  // Overwrites the regions with the newest whole checkpoint and says where it was; leaves them and returns step 0 when
  // there is none. One that is damaged, or was made from other inputs, is named in a warning and moved aside.
  proto::StageProgress resume();

  // Between two steps: goes on with the save under way, and starts one when it is due.
  void save_when_due(const proto::StageProgress& progress);

  // Returns when a checkpoint of this very moment is on disk, or could not be written; in words what became of it.
  std::string save(const proto::StageProgress& progress);

  double seconds_of_last_save() const { return seconds_; }  // from the copy until it was visible

 private:
  enum class Phase { idle, writing_shards, publishing };

  bool is_off() const { return place_.folder.empty(); }
  bool leads() const { return mesh_.world().rank() == 0; }
  std::vector<int64_t> steps_on_disk();
  std::unique_ptr<SavedCheckpoint> opened(int64_t step);
  void start(const proto::StageProgress& progress);
  void go_on(bool wait);
  bool any_rank_busy();
  void conclude_phase();
  ShardCopy copies() const;

  CheckpointPlace place_;
  CheckpointSection section_;
  Mesh& mesh_;
  Regions regions_;
  CheckpointListener& listener_;
  google::protobuf::Message* own_;
  StageFolders folders_;

  Phase phase_ = Phase::idle;
  proto::CheckpointIndex saving_;                 // of the save under way, without its shards
  std::future<proto::SaveReport> in_background_;  // this rank's part; none for ranks other than 0 while publishing
  Stopwatch since_start_;                         // of the save under way
  int64_t saved_step_ = 0;                        // of the newest checkpoint on disk
  int64_t next_step_;                             // that is due to be saved
  double seconds_ = 0.0;
};

}  // namespace flashmorph
