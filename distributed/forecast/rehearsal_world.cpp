#include "distributed/forecast/rehearsal_world.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

namespace flashmorph {
namespace {

using Meet = std::function<void(const Meeting&)>;

class EmptyGroup : public Communicator {
 public:
  EmptyGroup(int64_t rank, int64_t size, std::string name, Meet meet)
      : rank_(static_cast<int>(rank)), size_(static_cast<int>(size)), name_(std::move(name)), meet_(std::move(meet)) {
    std::vector<int> members(static_cast<size_t>(size));
    std::iota(members.begin(), members.end(), 0);
    join(shared_log(), name_, std::move(members));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void all_reduce(at::Tensor& values, Reduction) override { collective("all_reduce", values); }
  void broadcast(at::Tensor& values, int) override { collective("broadcast", values); }
  at::Tensor all_gather(const at::Tensor& values) override {
    collective("all_gather", values);
    return slots_for(values);
  }
  at::Tensor reduce_scatter(const at::Tensor& values) override {
    check_slots(values);
    collective("reduce_scatter", values);
    return values[rank_].clone();
  }
  Arriving start_sum(const at::Tensor& values) override {
    return {at::empty_like(values), begun("all_reduce", values)};
  }
  Arriving start_all_gather(const at::Tensor& values) override {
    return {slots_for(values), begun("all_gather", values)};
  }
  Arriving start_reduce_scatter(const at::Tensor& values) override {
    check_slots(values);
    return {at::empty_like(values[rank_]), begun("reduce_scatter", values)};
  }
  void connect(int) override {}
  void send(const at::Tensor& values, int to) override { meet(Meeting::Kind::sent, "send", values, to); }
  void receive(at::Tensor& values, int from) override { meet(Meeting::Kind::received, "receive", values, from); }
  void send_later(const at::Tensor& values, int to) override {
    send(values, to);
    sending_ = {values};  // the one before has left by now
  }
  void finish_sends() override { sending_.clear(); }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast_text(const std::string& text, int) override { return text; }
  std::unique_ptr<Communicator> split(int, int, const std::string& name) override {
    TORCH_CHECK(false, "group '", name_, "' has no group '", name, "' in it");
  }

 protected:
  const Meet& meet() const { return meet_; }

 private:
  void meet(Meeting::Kind kind, const char* operation, const at::Tensor& values, int64_t peer) {
    begin(operation, values);
    if (size_ > 1) meet_({kind, name_, operation, static_cast<double>(values.nbytes()), peer});
  }
  void collective(const char* operation, const at::Tensor& values) {
    meet(Meeting::Kind::collective, operation, values, 0);
  }
  at::Tensor slots_for(const at::Tensor& values) const {
    std::vector<int64_t> shape = values.sizes().vec();
    shape.insert(shape.begin(), size_);
    return at::zeros(shape, values.options());
  }
  std::function<void()> begun(const char* operation, const at::Tensor& values) {
    const int64_t number = begun_++;
    meet(Meeting::Kind::begun, operation, values, number);
    if (size_ == 1) return {};
    return [this, number] { meet_({Meeting::Kind::awaited, name_, "", 0.0, number}); };
  }

  int rank_, size_;
  std::string name_;
  Meet meet_;
  int64_t begun_ = 0;
  std::vector<at::Tensor> sending_;
};

class RehearsalWorld : public EmptyGroup {
 public:
  RehearsalWorld(const MeshShape& shape, int64_t rank, Meet meet)
      : EmptyGroup(rank, shape.ranks(), "world", std::move(meet)) {
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
    return std::make_unique<EmptyGroup>(rank, size, name, meet());
  }

 private:
  std::map<std::string, std::pair<int64_t, int64_t>> places_;  // this rank's in each group, and the group's size
};

}  // namespace

std::unique_ptr<Communicator> rehearsal_world(const MeshShape& shape, int64_t rank, Meet meet) {
  return std::make_unique<RehearsalWorld>(shape, rank, std::move(meet));
}

}  // namespace flashmorph
