#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace flashmorph {

// What a tensor is held for.
enum class MemoryKind { frozen, branches, hybrid, gradients, optimizer, activations, logits };
inline constexpr size_t kMemoryKinds = 7;
const char* name_of(MemoryKind kind);

struct BytesByKind {
  std::array<int64_t, kMemoryKinds> bytes{};

  int64_t& operator[](MemoryKind kind) { return bytes[static_cast<size_t>(kind)]; }
  int64_t operator[](MemoryKind kind) const { return bytes[static_cast<size_t>(kind)]; }
  int64_t total() const;
};

// The bytes of the tensors of one device that were made since the first call, what each is held for, and how much it
// was when it was most. Takes the place of that device's allocator until the process ends; any thread may use the
// tensors.
class TensorMemory {
 public:
  static TensorMemory& of_host();  // real tensors
  static TensorMemory& of_meta();  // tensors without values, which take no memory

  BytesByKind alive() const;
  BytesByKind peak() const;  // at the moment of the largest total since start_peak
  void start_peak();         // from what is alive now

  // What new tensors are held for, from now on; returns what it was. At first: activations.
  MemoryKind hold_for(MemoryKind kind);
  // What this tensor turned out to be held for. Only tensors made since the first call are known; others are passed
  // over.
  void relabel(const at::Tensor& tensor, MemoryKind kind);

 private:
  class Allocator;
  explicit TensorMemory(Allocator& allocator) : allocator_(&allocator) {}

  Allocator* allocator_;
};

// New tensors are held for `kind` while it lives.
class HeldFor {
 public:
  HeldFor(TensorMemory& memory, MemoryKind kind) : memory_(memory), before_(memory.hold_for(kind)) {}
  ~HeldFor() { memory_.hold_for(before_); }
  HeldFor(const HeldFor&) = delete;
  HeldFor& operator=(const HeldFor&) = delete;

 private:
  TensorMemory& memory_;
  MemoryKind before_;
};

}  // namespace flashmorph
