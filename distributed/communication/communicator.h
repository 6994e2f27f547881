#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/shard/arriving.h"
#include "distributed/communication/call_log.h"

namespace flashmorph {

enum class Reduction { sum, max };

// What went through a communicator so far, by operation; tests and reports read it.
struct Traffic {
  struct Entry {
    int64_t calls = 0;
    int64_t bytes = 0;  // of this rank's tensors
  };
  std::map<std::string, Entry> by_operation;
};

// One group of ranks. Collectives are called by every member in the same order, with equal shapes and dtypes; tensors
// are contiguous. A failure throws CommunicationError naming call, rank, size, group and the library's reason.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;

  virtual void all_reduce(at::Tensor& values, Reduction reduction) = 0;  // in place, the same bits on every rank
  virtual void broadcast(at::Tensor& values, int root) = 0;              // in place
  virtual at::Tensor all_gather(const at::Tensor& values) = 0;           // [size, ...values' shape], in rank order
  virtual at::Tensor reduce_scatter(const at::Tensor& values) = 0;  // [size, ...]: the sum over ranks of values[rank]

  // The sum over ranks of contiguous values, all_gather and reduce_scatter, begun. Where the library cannot, it is done
  // at once. Every member begins in the same order; `values` must not change before the result is here.
  virtual Arriving start_sum(const at::Tensor& values) {
    at::Tensor sum = values.clone();
    all_reduce(sum, Reduction::sum);
    return sum;
  }
  virtual Arriving start_all_gather(const at::Tensor& values) { return all_gather(values); }
  virtual Arriving start_reduce_scatter(const at::Tensor& values) { return reduce_scatter(values); }

  // Opens the way for messages of device tensors between this rank and `peer`, which calls it too. It waits for the
  // peer, so both must come to it without the other's help, and with no message under way.
  virtual void connect(int peer) = 0;
  virtual void send(const at::Tensor& values, int to) = 0;
  virtual void receive(at::Tensor& values, int from) = 0;

  // Sends without waiting for the receiver: `values` is kept, and must not be changed, until it has left.
  // finish_sends waits until all have. A receiver sees the messages of one sender in the order of their calls.
  virtual void send_later(const at::Tensor& values, int to) = 0;
  virtual void finish_sends() = 0;

  virtual void barrier() = 0;
  // A barrier that gives up: whether all ranks came within so many seconds. If not, the group is of no more use.
  virtual bool barrier_within(double seconds) = 0;
  virtual std::string broadcast_text(const std::string& text, int root) = 0;

  // The ranks of one colour become a group of their own, ordered by key; those of kNoGroup get none.
  static constexpr int kNoGroup = -1;
  virtual std::unique_ptr<Communicator> split(int color, int key, const std::string& name) = 0;

  const Traffic& traffic() const { return traffic_; }
  CallLog& log() const { return *log_; }  // of this rank's calls in all groups that come from one world

 protected:
  // A group tells its log of itself before its first call; one split off or wrapped around another has the other's log.
  void join(std::shared_ptr<CallLog> log, const std::string& name, std::vector<int> members) {
    log_ = std::move(log);
    group_ = log_->add_group(name, std::move(members));
  }
  void join_as(const Communicator& other) {
    log_ = other.log_;
    group_ = other.group_;
  }
  const std::shared_ptr<CallLog>& shared_log() const { return log_; }

  // A call, from here to the end of the scope, in the log; what is the identity, in a group of one, is not.
  class Call {
   public:
    Call(Communicator& group, const char* operation, int peer, const at::Tensor* values)
        : log_(group.size() > 1 ? group.log_.get() : nullptr) {
      if (log_ != nullptr) log_->begin(group.group_, operation, peer, values);
    }
    ~Call() {
      if (log_ != nullptr) log_->end();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    CallLog* log_;
  };

  // A call with a tensor is counted as traffic. peer: of a message.
  Call begin(const char* operation, const at::Tensor& values, int peer = kAll) {
    Traffic::Entry& entry = traffic_.by_operation[operation];
    ++entry.calls;
    entry.bytes += static_cast<int64_t>(values.nbytes());
    return Call(*this, operation, peer, &values);
  }
  Call begin(const char* operation, int peer = kAll) { return Call(*this, operation, peer, nullptr); }

  void check_slots(const at::Tensor& values) const {
    TORCH_CHECK(values.dim() > 0 && values.size(0) == size(), "reduce_scatter needs a slot for each of ", size(),
                " ranks, got ", values.sizes());
  }

 private:
  Traffic traffic_;
  std::shared_ptr<CallLog> log_ = std::make_shared<CallLog>();
  size_t group_ = 0;
};

class CommunicationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A call was not done within its group's deadline: another rank hangs, is stopped, or is dead.
class NotDoneInTime : public CommunicationError {
 public:
  using CommunicationError::CommunicationError;
};

// A group of one: every collective is the identity.
std::unique_ptr<Communicator> single_communicator(const std::string& name = "world");

}  // namespace flashmorph
