#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "distributed/checkpoint/file_operations.h"
#include "distributed/checkpoint/regions.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The checkpoints of one stage in RUN/checkpoints: a folder STAGE-STEP each (select-40, distill-uniform-20), in it a
// shard of each rank that saves something, and index.pb. A folder of that name is whole: it is written as .STAGE-STEP,
// synced, and renamed. The file `latest` names the newest; it is moved last.
struct StageFolders {
  std::filesystem::path root;
  std::string stage;  // "distill uniform"

  std::filesystem::path whole(int64_t step) const;
  std::filesystem::path hidden(int64_t step) const;
  std::filesystem::path aside(int64_t step) const;  // where one goes that cannot be used
  std::filesystem::path latest() const { return root / "latest"; }
  std::vector<int64_t> steps() const;  // of those that are there, newest first
  int64_t latest_step() const;         // of the one that `latest` names; 0 when it names none of this stage

  void remove_hidden() const;  // what saves have left that did not end; never throws
  // Whole, hidden and set aside: the stage's result is on disk. Removes the root as well when nothing else is left.
  void remove_all() const;
};

// A rank's copies of what it saves, and what they are.
struct ShardCopy {
  std::vector<proto::TensorSlice> slices;
  std::vector<at::Tensor> values;
};

// Writes and syncs `rank`'s shard into a hidden folder. Nothing for an empty one: the description has no file then.
proto::CheckpointShard write_shard(FileOperations& files, const std::filesystem::path& hidden, int rank,
                                   const ShardCopy& shard);

// All shards are in the hidden folder: writes the index, makes the checkpoint visible and the newest, and removes all
// but the `keep` newest.
void publish(FileOperations& files, const StageFolders& folders, const proto::CheckpointIndex& index, int64_t keep);

}  // namespace flashmorph
