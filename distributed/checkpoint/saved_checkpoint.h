#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "core/io/safetensors.h"
#include "distributed/checkpoint/regions.h"
#include "proto/run.pb.h"

namespace flashmorph {

// One checkpoint on disk, written by any mesh. Every fault is a BadInput that names the file, or the tensor.
class SavedCheckpoint {
 public:
  // Reads the index: its checksum, and that the slices of each tensor cover it without overlapping.
  explicit SavedCheckpoint(std::filesystem::path folder);
  SavedCheckpoint(const SavedCheckpoint&) = delete;
  SavedCheckpoint& operator=(const SavedCheckpoint&) = delete;

  const proto::CheckpointIndex& index() const { return index_; }

  // Reads a shard through: its size and checksum.
  void verify(const proto::CheckpointShard& shard) const;

  // Whether the checkpoint has the region, with its global shape.
  void require(const Region& region) const;

  // The region's values on the host, [rows, columns] of the region's dtype, put together from whatever slices hold
  // them; a view of the file where one slice is all of it.
  at::Tensor read(const Region& region) const;

 private:
  struct Source {
    const proto::CheckpointShard* shard;
    const proto::TensorSlice* slice;
  };

  void check_cover(const std::string& name, const std::vector<Source>& sources) const;
  at::Tensor stored(const Source& source, at::ScalarType dtype) const;
  std::string where(const std::string& tensor) const { return folder_.string() + ": tensor " + tensor; }

  std::filesystem::path folder_;
  proto::CheckpointIndex index_;
  std::map<std::string, std::vector<Source>> sources_;                           // by global tensor
  mutable std::map<std::string, std::shared_ptr<const SafetensorsFile>> files_;  // opened so far
};

}  // namespace flashmorph
