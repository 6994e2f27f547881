#include "distributed/parallel/mesh.h"

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

class GroupShard : public Shard {
 public:
  explicit GroupShard(Communicator& group) : group_(group) {}
  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void all_reduce_sum(at::Tensor& values) override { group_.all_reduce(values, Reduction::sum); }
  void all_reduce_max(at::Tensor& values) override { group_.all_reduce(values, Reduction::max); }

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

MeshShape MeshShape::of(int64_t ranks, int64_t tensor, int64_t pipeline) {
  if (tensor < 1 || pipeline < 1 || ranks % (tensor * pipeline) != 0)
    throw BadInput("parallel.tensor", std::to_string(tensor * pipeline) + " does not divide the " +
                                          std::to_string(ranks) + " ranks of this run; these would: " + divisors(ranks));
  return {ranks / (tensor * pipeline), pipeline, tensor};
}

Mesh::Mesh(Communicator& world, MeshShape shape) : world_(&world), shape_(shape) {
  TORCH_CHECK(shape.ranks() == world.size(), "a mesh of ", shape.ranks(), " ranks on ", world.size());
  const auto rank = static_cast<int>(world.rank());
  const auto d = static_cast<int>(data_rank()), p = static_cast<int>(pipeline_rank()), t = static_cast<int>(tensor_rank());
  const auto pipelines = static_cast<int>(shape.pipeline), tensors = static_cast<int>(shape.tensor);
  data_ = world.split(p * tensors + t, rank, "data");
  pipeline_ = world.split(d * tensors + t, rank, "pipeline");
  tensor_ = world.split(d * pipelines + p, rank, "tensor");
  shard_ = std::make_unique<GroupShard>(*tensor_);
}

int64_t Mesh::tensor_rank() const { return world_->rank() % shape_.tensor; }
int64_t Mesh::pipeline_rank() const { return world_->rank() / shape_.tensor % shape_.pipeline; }
int64_t Mesh::data_rank() const { return world_->rank() / (shape_.tensor * shape_.pipeline); }

std::string Mesh::rank_map() const {
  std::string text;
  for (int64_t rank = 0; rank < shape_.ranks(); ++rank)
    text += (rank == 0 ? "" : "\n") + std::string("rank ") + std::to_string(rank) + ": data " +
            std::to_string(rank / (shape_.tensor * shape_.pipeline)) + ", tensor " + std::to_string(rank % shape_.tensor);
  return text;
}

}  // namespace flashmorph
