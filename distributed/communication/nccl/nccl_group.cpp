#include "distributed/communication/nccl/nccl_group.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <fmt/format.h>

#include <exception>

#include "distributed/communication/communicator.h"

namespace flashmorph {
namespace {

constexpr std::chrono::milliseconds kBetweenLooks{50}, kBetweenQueries{1};

// A marker on one stream that another stream, or the host, waits for.
std::shared_ptr<CUevent_st> mark(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  std::shared_ptr<CUevent_st> owned(event, [](cudaEvent_t mine) { (void)cudaEventDestroy(mine); });
  C10_CUDA_CHECK(cudaEventRecord(event, stream));
  return owned;
}

}  // namespace

ncclUniqueId NcclGroup::new_id() {
  ncclUniqueId id;
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) throw CommunicationError(std::string("ncclGetUniqueId: ") + ncclGetErrorString(result));
  return id;
}

NcclGroup::NcclGroup(const ncclUniqueId& id, int rank, int size, std::string name, int card, double deadline,
                     CallLog& log)
    : stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, static_cast<c10::DeviceIndex>(card))),
      rank_(rank),
      size_(size),
      name_(std::move(name)),
      card_(card),
      deadline_(deadline),
      log_(log) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(card_));
  C10_CUDA_CHECK(cudaDeviceSynchronize());  // NCCL may wait for the device now, and no peer may be needed for that
  const ncclResult_t result = ncclCommInitRank(&comm_, size_, id, rank_);
  if (result != ncclSuccess)
    throw CommunicationError(described("ncclCommInitRank", ncclGetErrorString(result), nullptr));
  watcher_ = std::thread([this] { watch(); });
}

NcclGroup::~NcclGroup() {  // must not throw, and must not wait for peers that may be gone
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    if (failure_.empty()) fail("closed");
  }
  changed_.notify_all();
  watcher_.join();
  for (const Pending& pending : pending_) log_.done_on_card(pending.ticket);
}

std::function<void()> NcclGroup::start(std::string_view name, const at::Tensor& values, const Enqueue& enqueue,
                                       std::source_location at) {
  TORCH_CHECK(values.is_cuda() && values.get_device() == card_ && values.is_contiguous(), name,
              " needs a contiguous tensor on card ", card_);
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(card_));
  const c10::cuda::CUDAStream callers = c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(card_));
  const std::lock_guard lock(mutex_);
  throw_failure();

  C10_CUDA_CHECK(cudaStreamWaitEvent(stream_.stream(), mark(callers.stream()).get()));
  const ncclResult_t result = enqueue(comm_, stream_.stream());
  if (result != ncclSuccess) {
    fail(described(name, std::string(ncclGetErrorString(result)) + ": " + ncclGetLastError(comm_), &at));
    throw_failure();
  }
  c10::cuda::CUDACachingAllocator::recordStream(values.storage().data_ptr(), stream_);
  const std::shared_ptr<CUevent_st> done = mark(stream_.stream());
  pending_.push_back({done, log_.goes_on_on_card(), std::string(name), std::chrono::steady_clock::now()});
  changed_.notify_all();
  return [done, card = static_cast<c10::DeviceIndex>(card_)] {
    const c10::cuda::CUDAGuard on_card(card);
    C10_CUDA_CHECK(cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(card).stream(), done.get()));
  };
}

void NcclGroup::wait() {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(card_));
  C10_CUDA_CHECK(cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(card_)).stream(),
                                     mark(stream_.stream()).get()));
}

void NcclGroup::finish() {
  std::unique_lock lock(mutex_);
  for (drop_done(); !pending_.empty() && failure_.empty(); drop_done()) changed_.wait_for(lock, kBetweenQueries);
  throw_failure();
}

void NcclGroup::drop_done() {
  while (!pending_.empty() && cudaEventQuery(pending_.front().done.get()) == cudaSuccess) {
    log_.done_on_card(pending_.front().ticket);
    pending_.pop_front();
  }
}

void NcclGroup::watch() {
  (void)cudaSetDevice(card_);
  std::unique_lock lock(mutex_);
  while (!closing_ && failure_.empty()) {
    drop_done();
    if (pending_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Pending& oldest = pending_.front();
    ncclResult_t state = ncclSuccess;
    if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess || (state != ncclSuccess && state != ncclInProgress)) {
      fail(described(oldest.call, std::string(ncclGetErrorString(state)) + ": " + ncclGetLastError(comm_), nullptr));
    } else if (std::chrono::steady_clock::now() - oldest.start > deadline_) {
      not_in_time_ = true;
      fail(described(oldest.call, fmt::format("not done within {:.0f} s", deadline_.count()), nullptr));
    } else {
      changed_.wait_for(lock, kBetweenLooks);
    }
  }
}

void NcclGroup::throw_failure() const {
  if (failure_.empty()) return;
  if (not_in_time_) throw NotDoneInTime(failure_);
  throw CommunicationError(failure_);
}

void NcclGroup::fail(const std::string& failure) {
  failure_ = failure;
  (void)ncclCommAbort(comm_);
}

std::string NcclGroup::described(std::string_view call, const std::string& reason,
                                 const std::source_location* at) const {
  const std::string where = at == nullptr ? "" : fmt::format(" ({}:{})", at->file_name(), at->line());
  return fmt::format("{} failed on rank {} of {} in group '{}'{}: {}", call, rank_, size_, name_, where, reason);
}

}  // namespace flashmorph
