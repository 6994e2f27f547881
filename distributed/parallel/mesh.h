#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/shard/layer_range.h"
#include "core/shard/pipeline_peers.h"
#include "core/shard/shard.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

struct MeshPlace {
  int64_t data;
  int64_t pipeline;
  int64_t tensor;
};

struct MeshShape {
  int64_t data = 1;
  int64_t pipeline = 1;
  int64_t tensor = 1;
  bool sequence = false;  // tensor ranks share the residual stream's tokens, too

  int64_t ranks() const { return data * pipeline * tensor; }
  // Tensor ranks are neighbours, then pipeline ranks.
  int64_t rank_at(const MeshPlace& place) const {
    return (place.data * pipeline + place.pipeline) * tensor + place.tensor;
  }
  MeshPlace place_of(int64_t rank) const {
    return {rank / (tensor * pipeline), rank / tensor % pipeline, rank % tensor};
  }
  bool operator==(const MeshShape&) const = default;

  // BadInput at `section` when `tensor * pipeline` does not divide the ranks; the message lists what would.
  static MeshShape of(int64_t ranks, int64_t tensor, int64_t pipeline = 1, const std::string& section = "parallel");
};

class GroupShard;

// The ranks as a grid of data x pipeline x tensor, and this rank's groups in it.
class Mesh {
 public:
  Mesh(Communicator& world, MeshShape shape);
  ~Mesh();

  const MeshShape& shape() const { return shape_; }
  void share_tokens(bool sequence);  // from now on; on every rank, between steps
  int64_t data_rank() const { return place_.data; }
  int64_t pipeline_rank() const { return place_.pipeline; }
  int64_t tensor_rank() const { return place_.tensor; }

  Communicator& world() { return *world_; }
  Communicator& data() { return *data_; }           // same layers and heads, other samples
  Communicator& pipeline() { return *pipeline_; }   // same samples and heads, other layers
  Communicator& pipeline_ends() { return *ends_; }  // on its first and last rank, which hold a tied weight together
  Communicator& tensor() { return *tensor_; }       // same samples and layers, other heads
  Communicator& replica() { return *replica_; }     // same samples: one whole model, pipeline x tensor
  Shard& shard();                                   // the tensor group, as core sees it
  PipelinePeers& pipeline_peers() { return *pipeline_peers_; }  // the pipeline group, as core sees it
  std::vector<const Communicator*> groups() const;              // all but the world: those of more than one rank
  int64_t bytes_moved() const;  // of this rank's tensors, through all of them, since the start

 private:
  Communicator* world_;
  MeshShape shape_;
  MeshPlace place_;
  std::unique_ptr<Communicator> data_, pipeline_, ends_, tensor_, replica_;
  std::unique_ptr<GroupShard> shard_;
  std::unique_ptr<PipelinePeers> pipeline_peers_;
};

// A line a rank: "rank 3: data 1, pipeline 0 (layers 0-5), tensor 1". `layers` by pipeline rank.
std::string rank_map(const MeshShape& shape, const std::vector<LayerRange>& layers);

}  // namespace flashmorph
