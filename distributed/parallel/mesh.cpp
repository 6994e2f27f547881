#include "distributed/parallel/mesh.h"

#include "core/base/bad_input.h"

namespace flashmorph {

class GroupShard : public Shard {
 public:
  GroupShard(Communicator& group, bool sequence_parallel) : group_(group), sequence_parallel_(sequence_parallel) {}
  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void all_reduce_sum(at::Tensor& values) override { group_.all_reduce(values, Reduction::sum); }
  void all_reduce_max(at::Tensor& values) override { group_.all_reduce(values, Reduction::max); }
  at::Tensor all_gather(const at::Tensor& values) override { return group_.all_gather(values); }
  at::Tensor reduce_scatter(const at::Tensor& values) override { return group_.reduce_scatter(values); }
  Arriving start_sum(const at::Tensor& values) override { return group_.start_sum(values); }
  Arriving start_all_gather(const at::Tensor& values) override { return group_.start_all_gather(values); }
  Arriving start_reduce_scatter(const at::Tensor& values) override { return group_.start_reduce_scatter(values); }
  bool sequence_parallel() const override { return sequence_parallel_; }
  void share_tokens(bool sequence) { sequence_parallel_ = sequence; }

 private:
  Communicator& group_;
  bool sequence_parallel_;
};

namespace {

class GroupPipelinePeers : public PipelinePeers {
 public:
  explicit GroupPipelinePeers(Communicator& group) : group_(group) {}
  bool is_first() const override { return group_.rank() == 0; }
  bool is_last() const override { return group_.rank() == group_.size() - 1; }
  void receive(at::Tensor& states) override { group_.receive(states, group_.rank() - 1); }
  void send(const at::Tensor& states) override { group_.send_later(states.contiguous(), group_.rank() + 1); }
  void share_last(at::Tensor& values) override { group_.broadcast(values, group_.size() - 1); }

 private:
  Communicator& group_;
};

std::string divisors(int64_t number) {
  std::string text;
  for (int64_t candidate = 1; candidate <= number; ++candidate)
    if (number % candidate == 0) text += (text.empty() ? "" : ", ") + std::to_string(candidate);
  return text;
}

}  // namespace

MeshShape MeshShape::of(int64_t ranks, int64_t tensor, int64_t pipeline, const std::string& section) {
  const int64_t replica = tensor * pipeline;
  if (tensor >= 1 && pipeline >= 1 && ranks % replica == 0) return {ranks / replica, pipeline, tensor};
  const std::string rule =
      " does not divide the " + std::to_string(ranks) + " ranks of this run; these would: " + divisors(ranks);
  if (pipeline == 1) throw BadInput(section + ".tensor", std::to_string(tensor) + rule);
  throw BadInput(section, "tensor " + std::to_string(tensor) + " x pipeline " + std::to_string(pipeline) + " is " +
                              std::to_string(replica) + ", which" + rule);
}

Mesh::Mesh(Communicator& world, MeshShape shape) : world_(&world), shape_(shape), place_(shape.place_of(world.rank())) {
  TORCH_CHECK(shape.ranks() == world.size(), "a mesh of ", shape.ranks(), " ranks on ", world.size());
  const int rank = world.rank();
  const auto d = static_cast<int>(place_.data), p = static_cast<int>(place_.pipeline),
             t = static_cast<int>(place_.tensor);
  const auto pipelines = static_cast<int>(shape.pipeline), tensors = static_cast<int>(shape.tensor);
  data_ = world.split(p * tensors + t, rank, "data");
  pipeline_ = world.split(d * tensors + t, rank, "pipeline");
  const bool is_end = p == 0 || p == pipelines - 1;
  ends_ = world.split(is_end ? d * tensors + t : Communicator::kNoGroup, rank, "pipeline_ends");
  tensor_ = world.split(d * pipelines + p, rank, "tensor");
  replica_ = world.split(d, rank, "replica");
  if (p > 0) pipeline_->connect(p - 1);
  if (p + 1 < pipelines) pipeline_->connect(p + 1);
  shard_ = std::make_unique<GroupShard>(*tensor_, shape.sequence);
  pipeline_peers_ = std::make_unique<GroupPipelinePeers>(*pipeline_);
}

Mesh::~Mesh() = default;

Shard& Mesh::shard() { return *shard_; }

void Mesh::share_tokens(bool sequence) {
  shape_.sequence = sequence;
  shard_->share_tokens(sequence);
}

std::vector<const Communicator*> Mesh::groups() const {
  std::vector<const Communicator*> groups = {data_.get(), pipeline_.get(), ends_.get(), tensor_.get(), replica_.get()};
  std::erase_if(groups, [](const Communicator* group) { return group == nullptr || group->size() == 1; });
  return groups;
}

int64_t Mesh::bytes_moved() const {
  int64_t bytes = 0;
  for (const Communicator* group : groups())
    for (const auto& [operation, entry] : group->traffic().by_operation) bytes += entry.bytes;
  return bytes;
}

std::string rank_map(const MeshShape& shape, const std::vector<LayerRange>& layers) {
  TORCH_CHECK(static_cast<int64_t>(layers.size()) == shape.pipeline, "one range of layers a pipeline rank");
  std::string text;
  for (int64_t rank = 0; rank < shape.ranks(); ++rank) {
    const auto [data, pipeline, tensor] = shape.place_of(rank);
    text += (rank == 0 ? "" : "\n") + std::string("rank ") + std::to_string(rank) + ": data " + std::to_string(data) +
            ", pipeline " + std::to_string(pipeline) + " (layers " + std::to_string(layers[pipeline].first) + "-" +
            std::to_string(layers[pipeline].last - 1) + "), tensor " + std::to_string(tensor);
  }
  return text;
}

}  // namespace flashmorph
