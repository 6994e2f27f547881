#include "tests/mpi/strict_communicator.h"

#include <ATen/ATen.h>

#include <cstdio>
#include <map>
#include <set>

#include "distributed/communication/mpi_communicator.h"

namespace flashmorph::test {
namespace {

class StrictCommunicator : public Communicator {
 public:
  StrictCommunicator(std::unique_ptr<Communicator> inner, std::string* diary)
      : inner_(std::move(inner)),
        receipts_(inner_->split(0, inner_->rank(), inner_->name() + ", receipts")),
        diary_(diary) {
    join_as(*inner_);
  }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }

  void all_reduce(at::Tensor& values, Reduction reduction) override {
    const Call call = begin("all_reduce", values);
    inner_->all_reduce(values, reduction);
  }
  void broadcast(at::Tensor& values, int root) override {
    const Call call = begin("broadcast", values);
    inner_->broadcast(values, root);
  }
  at::Tensor all_gather(const at::Tensor& values) override {
    const Call call = begin("all_gather", values);
    return inner_->all_gather(values);
  }
  at::Tensor reduce_scatter(const at::Tensor& values) override {
    const Call call = begin("reduce_scatter", values);
    return inner_->reduce_scatter(values);
  }

  Arriving start_sum(const at::Tensor& values) override {
    const Call call = begin("all_reduce", values);
    return under_way(values, inner_->start_sum(values));
  }
  Arriving start_all_gather(const at::Tensor& values) override {
    const Call call = begin("all_gather", values);
    return under_way(values, inner_->start_all_gather(values));
  }
  Arriving start_reduce_scatter(const at::Tensor& values) override {
    const Call call = begin("reduce_scatter", values);
    return under_way(values, inner_->start_reduce_scatter(values));
  }

  void connect(int peer) override { connected_.insert(peer); }
  void send(const at::Tensor& values, int to) override {
    const Call call = begin("send", values, to);
    inner_->send_later(values, to);
    ++outstanding_[to];
    inner_->finish_sends();
    take_receipts(to);
  }
  void receive(at::Tensor& values, int from) override {
    const Call call = begin("receive", values, from);
    inner_->receive(values, from);
    receipts_->send(at::zeros({1}, at::kByte), from);
  }
  void send_later(const at::Tensor& values, int to) override {
    const Call call = begin("send", values, to);
    if (!connected_.contains(to)) {
      std::fprintf(stderr, "ranks %d and %d of group '%s' did not connect\n", rank(), to, name().c_str());
      MpiSession::abort(1);
    }
    inner_->send_later(values, to);
    ++outstanding_[to];
  }
  void finish_sends() override {
    inner_->finish_sends();
    for (const auto& [peer, count] : outstanding_) take_receipts(peer);
  }

  void barrier() override { inner_->barrier(); }
  bool barrier_within(double seconds) override { return inner_->barrier_within(seconds); }
  std::string broadcast_text(const std::string& text, int root) override { return inner_->broadcast_text(text, root); }
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    std::unique_ptr<Communicator> part = inner_->split(color, key, name);
    return part == nullptr ? nullptr : strict_communicator(std::move(part), diary_);
  }

 private:
  Arriving under_way(const at::Tensor& given, Arriving result) {
    const std::string number = std::to_string(++begun_);
    note("+" + number);
    return std::move(result).then([this, number, given, before = given.clone()](const at::Tensor& values) {
      TORCH_CHECK(given.equal(before), "what was given to a collective changed while it was under way");
      note("-" + number);
      return values;
    });
  }

  void note(const std::string& entry) {
    if (diary_ != nullptr) *diary_ += (diary_->empty() ? "" : " ") + entry;
  }

  void take_receipts(int peer) {
    for (at::Tensor receipt = at::zeros({1}, at::kByte); outstanding_[peer] > 0; --outstanding_[peer])
      receipts_->receive(receipt, peer);
  }

  std::unique_ptr<Communicator> inner_, receipts_;
  std::string* diary_;
  int64_t begun_ = 0;
  std::set<int> connected_;
  std::map<int, int64_t> outstanding_;  // messages to a peer of which no receipt was taken
};

}  // namespace

std::unique_ptr<Communicator> strict_communicator(std::unique_ptr<Communicator> inner, std::string* diary) {
  return std::make_unique<StrictCommunicator>(std::move(inner), diary);
}

}  // namespace flashmorph::test
