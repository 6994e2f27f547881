#include <ATen/ATen.h>

#include "distributed/communication/communicator.h"

namespace flashmorph {
namespace {

class SingleCommunicator : public Communicator {
 public:
  explicit SingleCommunicator(std::string name) : name_(std::move(name)) { join(shared_log(), name_, {0}); }

  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }

  void all_reduce(at::Tensor& values, Reduction) override {
    const Call call = begin("all_reduce", values);
    check_contiguous(values, "all_reduce");
  }
  void broadcast(at::Tensor& values, int root) override {
    const Call call = begin("broadcast", values);
    check_contiguous(values, "broadcast");
    if (root != 0) no_peer("broadcast", root);
  }
  at::Tensor all_gather(const at::Tensor& values) override {
    const Call call = begin("all_gather", values);
    check_contiguous(values, "all_gather");
    return values.unsqueeze(0).clone();
  }
  at::Tensor reduce_scatter(const at::Tensor& values) override {
    const Call call = begin("reduce_scatter", values);
    check_contiguous(values, "reduce_scatter");
    check_slots(values);
    return values.squeeze(0).clone();
  }
  void connect(int peer) override { no_peer("connect", peer); }
  void send(const at::Tensor&, int to) override { no_peer("send", to); }
  void receive(at::Tensor&, int from) override { no_peer("receive", from); }
  void send_later(const at::Tensor&, int to) override { no_peer("send_later", to); }
  void finish_sends() override {}
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast_text(const std::string& text, int root) override {
    if (root != 0) no_peer("broadcast_text", root);
    return text;
  }
  std::unique_ptr<Communicator> split(int color, int, const std::string& name) override {
    return color == kNoGroup ? nullptr : single_communicator(name);
  }

 private:
  static void check_contiguous(const at::Tensor& values, const char* call) {
    TORCH_CHECK(values.is_contiguous(), call, " needs a contiguous tensor");
  }
  [[noreturn]] void no_peer(const char* call, int peer) const {
    throw CommunicationError(std::string(call) + " with rank " + std::to_string(peer) + " in group '" + name_ +
                             "', which has one rank");
  }

  std::string name_;
};

}  // namespace

std::unique_ptr<Communicator> single_communicator(const std::string& name) {
  return std::make_unique<SingleCommunicator>(name);
}

}  // namespace flashmorph
