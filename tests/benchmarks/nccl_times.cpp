// What a rank's card spends in NCCL, and how long its work waits for that. A library that is loaded before the
// program's others:
//   FLASHMORPH_NCCL_TIMES=FOLDER LD_PRELOAD=libnccl_times.so flashmorph-dist ...
// Timing events go around each call of NCCL, on its stream, and around each wait for such a stream, on the stream that
// waits. FOLDER/RANK has a line for each: `call` or `wait`, its beginning (Unix seconds), its length (ms).
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

constexpr std::chrono::milliseconds kBetweenFlushes{100};  // a run may be killed

// The library's own function, which ours hides.
template <class Function>
Function* real(const char* library, const char* name) {
  void* const handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
  void* const found = handle == nullptr ? nullptr : dlsym(handle, name);
  if (found == nullptr) {
    std::fprintf(stderr, "nccl_times: no %s in %s\n", name, library);
    std::abort();
  }
  return reinterpret_cast<Function*>(found);
}

const std::string kRuntime = "libcudart.so." + std::to_string(CUDART_VERSION / 1000);

#define REAL_CUDA(name) static auto* const real_##name = real<decltype(name)>(kRuntime.c_str(), #name)
#define REAL_NCCL(name) static auto* const real_##name = real<decltype(name)>("libnccl.so.2", #name)

cudaError_t record(cudaEvent_t event, cudaStream_t stream) {
  REAL_CUDA(cudaEventRecord);
  return real_cudaEventRecord(event, stream);
}

class Times {
 public:
  // Null where nobody asked.
  static Times* get() {
    static Times* const one = std::getenv("FLASHMORPH_NCCL_TIMES") == nullptr ? nullptr : new Times();
    return one;
  }

  void uses(cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    streams_.insert(stream);
  }

  void recorded(cudaEvent_t event, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    streams_.contains(stream) ? (void)behind_nccl_.insert(event) : (void)behind_nccl_.erase(event);
  }

  bool waits_for_nccl(cudaStream_t stream, cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    return behind_nccl_.contains(event) && !streams_.contains(stream);
  }

  template <class Work>
  auto timed(const char* what, cudaStream_t stream, Work work) {
    set_base(stream);
    const Span span{what, event(), event()};
    record(span.from, stream);
    const auto result = work();
    record(span.to, stream);
    const std::lock_guard lock(mutex_);
    under_way_.push_back(span);
    write_done();
    return result;
  }

 private:
  struct Span {
    const char* what;
    cudaEvent_t from, to;
  };

  Times() {
    const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
    const std::filesystem::path folder = std::getenv("FLASHMORPH_NCCL_TIMES");
    file_ = std::fopen((folder / (rank == nullptr ? "0" : rank)).c_str(), "w");
    if (file_ == nullptr) std::abort();
  }

  cudaEvent_t event() {
    const std::lock_guard lock(mutex_);
    if (spare_.empty()) return new_event();
    cudaEvent_t const known = spare_.back();
    spare_.pop_back();
    return known;
  }

  static cudaEvent_t new_event() {
    REAL_CUDA(cudaEventCreateWithFlags);
    cudaEvent_t made = nullptr;
    if (real_cudaEventCreateWithFlags(&made, cudaEventDefault) != cudaSuccess) std::abort();
    return made;
  }

  // What the other events are measured from; the first call has not begun then.
  void set_base(cudaStream_t stream) {
    REAL_CUDA(cudaEventSynchronize);
    const std::lock_guard lock(mutex_);
    if (base_ != nullptr) return;
    base_ = new_event();
    record(base_, stream);
    (void)real_cudaEventSynchronize(base_);
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    base_seconds_ = std::chrono::duration<double>(now).count();
  }

  void write_done() {
    REAL_CUDA(cudaEventQuery);
    REAL_CUDA(cudaEventElapsedTime);
    while (!under_way_.empty() && real_cudaEventQuery(under_way_.front().to) == cudaSuccess) {
      const Span span = under_way_.front();
      under_way_.pop_front();
      float since = 0.0F, length = 0.0F;
      (void)real_cudaEventElapsedTime(&since, base_, span.from);
      (void)real_cudaEventElapsedTime(&length, span.from, span.to);
      std::fprintf(file_, "%s %.6f %.4f\n", span.what, base_seconds_ + 1e-3 * since, length);
      spare_.insert(spare_.end(), {span.from, span.to});
    }
    if (const auto now = std::chrono::steady_clock::now(); now - flushed_ > kBetweenFlushes) {
      std::fflush(file_);
      flushed_ = now;
    }
  }

  std::mutex mutex_;
  std::FILE* file_ = nullptr;
  cudaEvent_t base_ = nullptr;
  double base_seconds_ = 0.0;
  std::chrono::steady_clock::time_point flushed_;
  std::deque<Span> under_way_;
  std::vector<cudaEvent_t> spare_;
  std::unordered_set<cudaStream_t> streams_;
  std::unordered_set<cudaEvent_t> behind_nccl_;
};

template <class Call>
ncclResult_t timed(cudaStream_t stream, Call call) {
  Times* const times = Times::get();
  if (times == nullptr) return call();
  times->uses(stream);
  return times->timed("call", stream, call);
}

}  // namespace

extern "C" {

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (Times* const times = Times::get()) times->recorded(event, stream);
  return record(event, stream);
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
  REAL_CUDA(cudaEventRecordWithFlags);
  if (Times* const times = Times::get()) times->recorded(event, stream);
  return real_cudaEventRecordWithFlags(event, stream, flags);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
  REAL_CUDA(cudaStreamWaitEvent);
  const auto wait = [&] { return real_cudaStreamWaitEvent(stream, event, flags); };
  Times* const times = Times::get();
  if (times == nullptr || !times->waits_for_nccl(stream, event)) return wait();
  return times->timed("wait", stream, wait);
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  REAL_NCCL(ncclAllReduce);
  return timed(stream, [&] { return real_ncclAllReduce(from, to, count, type, op, comm, stream); });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  REAL_NCCL(ncclBroadcast);
  return timed(stream, [&] { return real_ncclBroadcast(from, to, count, type, root, comm, stream); });
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  REAL_NCCL(ncclAllGather);
  return timed(stream, [&] { return real_ncclAllGather(from, to, count, type, comm, stream); });
}

ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  REAL_NCCL(ncclReduceScatter);
  return timed(stream, [&] { return real_ncclReduceScatter(from, to, count, type, op, comm, stream); });
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  REAL_NCCL(ncclSend);
  return timed(stream, [&] { return real_ncclSend(from, count, type, peer, comm, stream); });
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  REAL_NCCL(ncclRecv);
  return timed(stream, [&] { return real_ncclRecv(to, count, type, peer, comm, stream); });
}

}  // extern "C"
