#include "core/rehearsal/tensor_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstring>
#include <mutex>
#include <new>
#include <numeric>
#include <utility>

namespace flashmorph {

const char* name_of(MemoryKind kind) {
  constexpr const char* kNames[kMemoryKinds] = {"frozen",    "branches",    "hybrid", "gradients",
                                                "optimizer", "activations", "logits"};
  return kNames[static_cast<size_t>(kind)];
}

int64_t BytesByKind::total() const { return std::accumulate(bytes.begin(), bytes.end(), int64_t{0}); }

class TensorMemory::Allocator : public c10::Allocator {
 public:
  explicit Allocator(c10::DeviceType device) : device_(device) {}

  c10::DataPtr allocate(size_t bytes) override {
    const bool has_values = device_ == c10::kCPU;
    auto* start = static_cast<char*>(c10::alloc_cpu(kBlockBytes + (has_values ? bytes : 0)));
    auto* block = new (start) Block{this, static_cast<int64_t>(bytes), MemoryKind::activations};
    {
      const std::lock_guard lock(mutex_);
      block->kind = kind_;
      alive_[kind_] += block->bytes;
      total_ += block->bytes;
      if (total_ > peak_total_) set_peak();
    }
    char* const context = start + kBlockBytes;  // is the data, as oneDNN wants it, which allocates without a DataPtr
    return {has_values ? context : nullptr, context, &release, c10::Device(device_)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    if (device_ == c10::kCPU) std::memcpy(to, from, count);
  }

  BytesByKind alive() const {
    const std::lock_guard lock(mutex_);
    return alive_;
  }
  BytesByKind peak() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  void start_peak() {
    const std::lock_guard lock(mutex_);
    set_peak();
  }
  MemoryKind hold_for(MemoryKind kind) {
    const std::lock_guard lock(mutex_);
    return std::exchange(kind_, kind);
  }
  void relabel(const at::Tensor& tensor, MemoryKind kind) {
    const c10::DataPtr& data = tensor.storage().data_ptr();
    if (data.get_deleter() != &release) return;
    Block* block = block_of(data.get_context());
    const std::lock_guard lock(mutex_);
    alive_[block->kind] -= block->bytes;
    alive_[kind] += block->bytes;
    block->kind = kind;
  }

 private:
  struct Block {  // in front of the data
    Allocator* owner;
    int64_t bytes;
    MemoryKind kind;
  };
  static constexpr size_t kBlockBytes = c10::gAlignment;
  static_assert(sizeof(Block) <= kBlockBytes);

  static Block* block_of(void* context) { return reinterpret_cast<Block*>(static_cast<char*>(context) - kBlockBytes); }

  static void release(void* context) {
    Block* block = block_of(context);
    Allocator& owner = *block->owner;
    {
      const std::lock_guard lock(owner.mutex_);
      owner.alive_[block->kind] -= block->bytes;
      owner.total_ -= block->bytes;
    }
    c10::free_cpu(block);
  }

  void set_peak() {
    peak_ = alive_;
    peak_total_ = total_;
  }

  c10::DeviceType device_;
  mutable std::mutex mutex_;
  MemoryKind kind_ = MemoryKind::activations;
  BytesByKind alive_, peak_;
  int64_t total_ = 0, peak_total_ = 0;
};

TensorMemory& TensorMemory::of_host() {
  static Allocator& allocator = *new Allocator(c10::kCPU);  // tensors may outlive everything
  static TensorMemory memory = [] {
    c10::SetCPUAllocator(&allocator, /*priority=*/1);
    return TensorMemory(allocator);
  }();
  return memory;
}

TensorMemory& TensorMemory::of_meta() {
  static Allocator& allocator = *new Allocator(c10::kMeta);
  static TensorMemory memory = [] {
    c10::SetAllocator(c10::kMeta, &allocator, /*priority=*/1);
    return TensorMemory(allocator);
  }();
  return memory;
}

BytesByKind TensorMemory::alive() const { return allocator_->alive(); }
BytesByKind TensorMemory::peak() const { return allocator_->peak(); }
void TensorMemory::start_peak() { allocator_->start_peak(); }
MemoryKind TensorMemory::hold_for(MemoryKind kind) { return allocator_->hold_for(kind); }
void TensorMemory::relabel(const at::Tensor& tensor, MemoryKind kind) { allocator_->relabel(tensor, kind); }

}  // namespace flashmorph
