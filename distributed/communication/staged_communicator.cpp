#include <ATen/ATen.h>

#include "distributed/communication/device_communicator.h"

namespace flashmorph {
namespace {

at::Tensor host_like(const at::Tensor& values) {
  return at::empty(values.sizes(), at::TensorOptions(values.scalar_type()).pinned_memory(true));
}

at::Tensor on_host(const at::Tensor& values) { return host_like(values).copy_(values); }

class StagedCommunicator : public DeviceCommunicator {
 public:
  using DeviceCommunicator::DeviceCommunicator;

  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    std::unique_ptr<Communicator> part = host().split(color, key, name);
    return part == nullptr ? nullptr : staged_communicator(std::move(part));
  }

 protected:
  void all_reduce_on_device(at::Tensor& values, Reduction reduction) override {
    at::Tensor copy = on_host(values);
    host().all_reduce(copy, reduction);
    values.copy_(copy);
  }
  void broadcast_on_device(at::Tensor& values, int root) override {
    at::Tensor copy = on_host(values);
    host().broadcast(copy, root);
    values.copy_(copy);
  }
  at::Tensor all_gather_on_device(const at::Tensor& values) override {
    return host().all_gather(on_host(values)).to(values.device());
  }
  at::Tensor reduce_scatter_on_device(const at::Tensor& values) override {
    return host().reduce_scatter(on_host(values)).to(values.device());
  }
  void send_on_device(const at::Tensor& values, int to) override { host().send(on_host(values), to); }
  void receive_on_device(at::Tensor& values, int from) override {
    at::Tensor copy = host_like(values);
    host().receive(copy, from);
    values.copy_(copy);
  }
  void send_later_on_device(const at::Tensor& values, int to) override { host().send_later(on_host(values), to); }
};

}  // namespace

std::unique_ptr<Communicator> staged_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<StagedCommunicator>(std::move(host));
}

}  // namespace flashmorph
