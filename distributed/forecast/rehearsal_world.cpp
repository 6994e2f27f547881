#include "distributed/forecast/rehearsal_world.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

namespace flashmorph {
namespace {

class EmptyGroup : public Communicator {
 public:
  EmptyGroup(int64_t rank, int64_t size, std::string name)
      : rank_(static_cast<int>(rank)), size_(static_cast<int>(size)), name_(std::move(name)) {
    std::vector<int> members(static_cast<size_t>(size));
    std::iota(members.begin(), members.end(), 0);
    join(shared_log(), name_, std::move(members));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void all_reduce(at::Tensor& values, Reduction) override { begin("all_reduce", values); }
  void broadcast(at::Tensor& values, int) override { begin("broadcast", values); }
  at::Tensor all_gather(const at::Tensor& values) override {
    begin("all_gather", values);
    std::vector<int64_t> shape = values.sizes().vec();
    shape.insert(shape.begin(), size_);
    return at::zeros(shape, values.options());
  }
  at::Tensor reduce_scatter(const at::Tensor& values) override {
    begin("reduce_scatter", values);
    check_slots(values);
    return values[rank_].clone();
  }
  void connect(int) override {}
  void send(const at::Tensor& values, int) override { begin("send", values); }
  void receive(at::Tensor& values, int) override { begin("receive", values); }
  void send_later(const at::Tensor& values, int) override {
    begin("send", values);
    sending_ = {values};  // the one before has left by now
  }
  void finish_sends() override { sending_.clear(); }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast_text(const std::string& text, int) override { return text; }
  std::unique_ptr<Communicator> split(int, int, const std::string& name) override {
    TORCH_CHECK(false, "group '", name_, "' has no group '", name, "' in it");
  }

 private:
  int rank_, size_;
  std::string name_;
  std::vector<at::Tensor> sending_;
};

class RehearsalWorld : public EmptyGroup {
 public:
  RehearsalWorld(const MeshShape& shape, int64_t rank) : EmptyGroup(rank, shape.ranks(), "world") {
    const auto [data, pipeline, tensor] = shape.place_of(rank);
    places_ = {{"data", {data, shape.data}},
               {"pipeline", {pipeline, shape.pipeline}},
               {"pipeline_ends", {pipeline == 0 ? 0 : 1, std::min<int64_t>(2, shape.pipeline)}},
               {"tensor", {tensor, shape.tensor}},
               {"replica", {shape.rank_at({0, pipeline, tensor}), shape.pipeline * shape.tensor}}};
  }

  std::unique_ptr<Communicator> split(int color, int, const std::string& name) override {
    if (color == kNoGroup) return nullptr;
    const auto [rank, size] = places_.at(name);
    return std::make_unique<EmptyGroup>(rank, size, name);
  }

 private:
  std::map<std::string, std::pair<int64_t, int64_t>> places_;  // this rank's in each group, and the group's size
};

}  // namespace

std::unique_ptr<Communicator> rehearsal_world(const MeshShape& shape, int64_t rank) {
  return std::make_unique<RehearsalWorld>(shape, rank);
}

}  // namespace flashmorph
