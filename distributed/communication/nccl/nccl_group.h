#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>
#include <string_view>
#include <thread>

#include "distributed/communication/call_log.h"

namespace flashmorph {

// One NCCL communicator with a stream of its own. Calls are put on that stream and crossed with the caller's by events,
// so the host never waits. A thread watches the calls under way: when one fails or outlasts the deadline it aborts the
// communicator, which frees whoever waits for the device, and every later call throws CommunicationError
// (NotDoneInTime). Its end is an abort, too, which waits for nobody: the ranks should have met before, with nothing
// under way.
class NcclGroup {
 public:
  // Collective over the group: every rank with the same id. `log`, which outlives this, is told what the card is in.
  NcclGroup(const ncclUniqueId& id, int rank, int size, std::string name, int card, double deadline, CallLog& log);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  static ncclUniqueId new_id();

  using Enqueue = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;

  // Runs `enqueue` behind what the caller's stream has so far, which goes on at once. `values` is what it reads or
  // writes. What it writes may be read, and what it reads be written or freed, behind the wait that is returned, for
  // the caller's stream of that moment, or behind a later one of the group.
  std::function<void()> start(std::string_view name, const at::Tensor& values, const Enqueue& enqueue,
                              std::source_location at = std::source_location::current());

  // The caller's stream goes on behind it.
  void call(std::string_view name, const at::Tensor& values, const Enqueue& enqueue,
            std::source_location at = std::source_location::current()) {
    start(name, values, enqueue, at)();
  }

  void wait();    // the caller's stream, for all calls so far
  void finish();  // the host, for all calls so far

 private:
  struct Pending {
    std::shared_ptr<CUevent_st> done;
    int64_t ticket;  // in the log
    std::string call;
    std::chrono::steady_clock::time_point start;
  };

  void watch();
  void drop_done();                       // of pending_; with mutex_ held
  void fail(const std::string& failure);  // aborts; with mutex_ held
  void throw_failure() const;             // if there is one; with mutex_ held
  std::string described(std::string_view call, const std::string& reason, const std::source_location* at) const;

  ncclComm_t comm_ = nullptr;
  c10::cuda::CUDAStream stream_;
  int rank_, size_;
  std::string name_;
  int card_;
  std::chrono::duration<double> deadline_;
  CallLog& log_;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<Pending> pending_;
  std::string failure_;  // empty: none
  bool not_in_time_ = false;
  bool closing_ = false;
  std::thread watcher_;
};

}  // namespace flashmorph
