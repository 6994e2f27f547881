#pragma once

#include <memory>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// A group whose ranks hold tensors on cards. Host tensors, texts and barriers go through the host's communicator, which
// it owns; how device tensors travel is up to the derived class.
class DeviceCommunicator : public Communicator {
 public:
  explicit DeviceCommunicator(std::unique_ptr<Communicator> host) : host_(std::move(host)) { join_as(*host_); }

  int rank() const final { return host_->rank(); }
  int size() const final { return host_->size(); }
  const std::string& name() const final { return host_->name(); }

  void all_reduce(at::Tensor& values, Reduction reduction) final {
    const Call call = begin("all_reduce", values);
    values.is_cpu() ? host_->all_reduce(values, reduction) : all_reduce_on_device(values, reduction);
  }
  void broadcast(at::Tensor& values, int root) final {
    const Call call = begin("broadcast", values);
    values.is_cpu() ? host_->broadcast(values, root) : broadcast_on_device(values, root);
  }
  at::Tensor all_gather(const at::Tensor& values) final {
    const Call call = begin("all_gather", values);
    return values.is_cpu() ? host_->all_gather(values) : all_gather_on_device(values);
  }
  at::Tensor reduce_scatter(const at::Tensor& values) final {
    const Call call = begin("reduce_scatter", values);
    check_slots(values);
    return values.is_cpu() ? host_->reduce_scatter(values) : reduce_scatter_on_device(values);
  }
  Arriving start_sum(const at::Tensor& values) final {
    const Call call = begin("all_reduce", values);
    return values.is_cpu() ? host_->start_sum(values) : start_sum_on_device(values);
  }
  Arriving start_all_gather(const at::Tensor& values) final {
    const Call call = begin("all_gather", values);
    return values.is_cpu() ? host_->start_all_gather(values) : start_all_gather_on_device(values);
  }
  Arriving start_reduce_scatter(const at::Tensor& values) final {
    const Call call = begin("reduce_scatter", values);
    check_slots(values);
    return values.is_cpu() ? host_->start_reduce_scatter(values) : start_reduce_scatter_on_device(values);
  }
  void connect(int peer) override { host_->connect(peer); }
  void send(const at::Tensor& values, int to) final {
    const Call call = begin("send", values, to);
    values.is_cpu() ? host_->send(values, to) : send_on_device(values, to);
  }
  void receive(at::Tensor& values, int from) final {
    const Call call = begin("receive", values, from);
    values.is_cpu() ? host_->receive(values, from) : receive_on_device(values, from);
  }
  void send_later(const at::Tensor& values, int to) final {
    const Call call = begin("send", values, to);
    values.is_cpu() ? host_->send_later(values, to) : send_later_on_device(values, to);
  }
  void finish_sends() override { host_->finish_sends(); }
  void barrier() final { host_->barrier(); }
  bool barrier_within(double seconds) final { return host_->barrier_within(seconds); }
  std::string broadcast_text(const std::string& text, int root) final { return host_->broadcast_text(text, root); }

 protected:
  virtual void all_reduce_on_device(at::Tensor& values, Reduction reduction) = 0;
  virtual void broadcast_on_device(at::Tensor& values, int root) = 0;
  virtual at::Tensor all_gather_on_device(const at::Tensor& values) = 0;
  virtual at::Tensor reduce_scatter_on_device(const at::Tensor& values) = 0;
  virtual Arriving start_sum_on_device(const at::Tensor& values) {
    at::Tensor sum = values.clone();
    all_reduce_on_device(sum, Reduction::sum);
    return sum;
  }
  virtual Arriving start_all_gather_on_device(const at::Tensor& values) { return all_gather_on_device(values); }
  virtual Arriving start_reduce_scatter_on_device(const at::Tensor& values) { return reduce_scatter_on_device(values); }
  virtual void send_on_device(const at::Tensor& values, int to) = 0;
  virtual void receive_on_device(at::Tensor& values, int from) = 0;
  virtual void send_later_on_device(const at::Tensor& values, int to) = 0;

  Communicator& host() { return *host_; }

 private:
  std::unique_ptr<Communicator> host_;
};

// Device tensors are copied to page-locked host memory and go through the host's communicator: any number of ranks may
// share a card.
std::unique_ptr<Communicator> staged_communicator(std::unique_ptr<Communicator> host);

}  // namespace flashmorph
