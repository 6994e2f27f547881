#include "distributed/communication/nccl/nccl_communicator.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>
#include <exception>
#include <map>
#include <vector>

#include "distributed/communication/device_communicator.h"
#include "distributed/communication/nccl/nccl_group.h"

namespace flashmorph {
namespace {

ncclDataType_t nccl_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kLong:
      return ncclInt64;
    case at::kInt:
      return ncclInt32;
    case at::kByte:
    case at::kBool:
      return ncclUint8;
    default:
      TORCH_CHECK(false, "no NCCL type for tensors of ", c10::toString(type));
  }
}

class NcclCommunicator : public DeviceCommunicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, int card, double deadline)
      : DeviceCommunicator(std::move(host)),
        card_(card),
        deadline_(deadline),
        group_(shared_id(), rank(), size(), name(), card, deadline, log()) {}

  // NCCL's own closing waits for the other ranks without a deadline. So they meet here with one, when nothing is under
  // way any more, and then each group is aborted, which waits for nobody.
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() > 0) return;
    try {
      group_.finish();
      for (const auto& [peer, lanes] : peers_) {
        lanes.up->finish();
        lanes.down->finish();
      }
      (void)barrier_within(deadline_);
    } catch (const std::exception&) {  // the group has failed; its last caller was told
    }
  }

  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    return nccl_communicator(host().split(color, key, name), card_, deadline_);
  }

  // The first message on a lane sets it up, for which NCCL's host call waits for the other end: two ranks that send to
  // each other first would wait for ever. Here both lanes are set up in one order.
  void connect(int peer) override {
    if (peers_.contains(peer)) return;
    const bool low = rank() < peer;
    const Lanes& lanes = peers_.emplace(peer, opened_lanes(peer)).first->second;
    at::Tensor probe =
        at::zeros({1}, at::TensorOptions(at::kByte).device(at::kCUDA, static_cast<c10::DeviceIndex>(card_)));
    for (const bool upwards : {true, false}) {
      low == upwards ? send_on_device(probe, peer) : receive_on_device(probe, peer);
      (upwards ? lanes.up : lanes.down)->finish();
    }
  }

  void finish_sends() override {
    DeviceCommunicator::finish_sends();
    for (const auto& [peer, lanes] : peers_) sending(lanes, peer).wait();
  }

 protected:
  void all_reduce_on_device(at::Tensor& values, Reduction reduction) override {
    const bool sums = reduction == Reduction::sum && values.scalar_type() != at::kBool;  // truths: any
    group_.call("ncclAllReduce", values, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(values.data_ptr(), values.data_ptr(), values.numel(), nccl_type(values.scalar_type()),
                           sums ? ncclSum : ncclMax, comm, stream);
    });
  }

  void broadcast_on_device(at::Tensor& values, int root) override {
    group_.call("ncclBroadcast", values, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(values.data_ptr(), values.data_ptr(), values.numel(), nccl_type(values.scalar_type()), root,
                           comm, stream);
    });
  }

  at::Tensor all_gather_on_device(const at::Tensor& values) override {
    return start_all_gather_on_device(values).here();
  }

  at::Tensor reduce_scatter_on_device(const at::Tensor& values) override {
    return start_reduce_scatter_on_device(values).here();
  }

  Arriving start_sum_on_device(const at::Tensor& values) override {
    at::Tensor sum = at::empty_like(values);
    return held(values, sum, group_.start("ncclAllReduce", sum, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(values.data_ptr(), sum.data_ptr(), values.numel(), nccl_type(values.scalar_type()), ncclSum,
                           comm, stream);
    }));
  }

  Arriving start_all_gather_on_device(const at::Tensor& values) override {
    TORCH_CHECK(values.is_contiguous(), "ncclAllGather needs a contiguous tensor");
    std::vector<int64_t> shape = values.sizes().vec();
    shape.insert(shape.begin(), size());
    at::Tensor all = at::empty(shape, values.options());
    return held(values, all, group_.start("ncclAllGather", all, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllGather(values.data_ptr(), all.data_ptr(), values.numel(), nccl_type(values.scalar_type()), comm,
                           stream);
    }));
  }

  Arriving start_reduce_scatter_on_device(const at::Tensor& values) override {
    at::Tensor own = at::empty(values.sizes().slice(1), values.options());
    return held(values, own, group_.start("ncclReduceScatter", own, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclReduceScatter(values.data_ptr(), own.data_ptr(), own.numel(), nccl_type(values.scalar_type()), ncclSum,
                               comm, stream);
    }));
  }

  void send_on_device(const at::Tensor& values, int to) override { start_send(values, to)(); }
  void send_later_on_device(const at::Tensor& values, int to) override { (void)start_send(values, to); }

  void receive_on_device(at::Tensor& values, int from) override {
    receiving(lanes_with(from), from).call("ncclRecv", values, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclRecv(values.data_ptr(), values.numel(), nccl_type(values.scalar_type()), kSender, comm, stream);
    });
  }

 private:
  // A communicator for each direction, with two ranks: from the lower rank to the higher, and back. On one of them
  // alone, a send that waits for its receiver would hold back the receive behind it for which that receiver waits.
  struct Lanes {
    std::unique_ptr<NcclGroup> up, down;
  };
  static constexpr int kSender = 0, kReceiver = 1;

  NcclGroup& sending(const Lanes& lanes, int peer) const { return rank() < peer ? *lanes.up : *lanes.down; }
  NcclGroup& receiving(const Lanes& lanes, int peer) const { return rank() < peer ? *lanes.down : *lanes.up; }

  // The memory of what is sent is free for others only behind the call.
  static Arriving held(const at::Tensor& values, const at::Tensor& result, std::function<void()> wait) {
    return {result, [values, wait = std::move(wait)] { wait(); }};
  }

  std::function<void()> start_send(const at::Tensor& values, int to) {
    return sending(lanes_with(to), to).start("ncclSend", values, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclSend(values.data_ptr(), values.numel(), nccl_type(values.scalar_type()), kReceiver, comm, stream);
    });
  }

  const Lanes& lanes_with(int peer) const {
    const auto found = peers_.find(peer);
    if (found != peers_.end()) return found->second;
    throw CommunicationError(
        fmt::format("ranks {} and {} of {} in group '{}' exchange device tensors and did not connect", rank(), peer,
                    size(), name()));
  }

  Lanes opened_lanes(int peer) {
    const bool low = rank() < peer;
    at::Tensor bytes = at::empty({2, static_cast<int64_t>(sizeof(ncclUniqueId))}, at::kByte);
    ncclUniqueId upwards{}, downwards{};
    if (low) {
      upwards = NcclGroup::new_id();
      downwards = NcclGroup::new_id();
      std::memcpy(bytes[0].data_ptr(), &upwards, sizeof upwards);
      std::memcpy(bytes[1].data_ptr(), &downwards, sizeof downwards);
      host().send(bytes, peer);
    } else {
      host().receive(bytes, peer);
      std::memcpy(&upwards, bytes[0].data_ptr(), sizeof upwards);
      std::memcpy(&downwards, bytes[1].data_ptr(), sizeof downwards);
    }
    Lanes lanes;
    lanes.up =
        std::make_unique<NcclGroup>(upwards, low ? kSender : kReceiver, 2, name() + ", up", card_, deadline_, log());
    lanes.down = std::make_unique<NcclGroup>(downwards, low ? kReceiver : kSender, 2, name() + ", down", card_,
                                             deadline_, log());
    return lanes;
  }

  ncclUniqueId shared_id() {
    at::Tensor bytes = at::zeros({static_cast<int64_t>(sizeof(ncclUniqueId))}, at::kByte);
    if (rank() == 0) {
      const ncclUniqueId made = NcclGroup::new_id();
      std::memcpy(bytes.data_ptr(), &made, sizeof made);
    }
    host().broadcast(bytes, 0);
    ncclUniqueId id;
    std::memcpy(&id, bytes.data_ptr(), sizeof id);
    return id;
  }

  int card_;
  double deadline_;
  NcclGroup group_;
  std::map<int, Lanes> peers_;
};

}  // namespace

std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> host, int card, double deadline) {
  if (host == nullptr) return nullptr;
  if (host->size() == 1) return single_communicator(host->name());
  return std::make_unique<NcclCommunicator>(std::move(host), card, deadline);
}

}  // namespace flashmorph
