#include "core/base/piecewise_copy.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "core/base/on_threads.h"

namespace flashmorph {
namespace {

using Pair = std::pair<at::Tensor, at::Tensor>;  // from, to

void add_pieces(const at::Tensor& from, const at::Tensor& to, int64_t bytes, std::vector<Pair>& pieces) {
  if (from.numel() == 0) return;
  if (from.dim() == 0) {
    pieces.emplace_back(from, to);
    return;
  }
  const int64_t row = from.numel() / from.size(0) * static_cast<int64_t>(from.element_size());
  const int64_t rows = std::max<int64_t>(1, bytes / row);
  for (int64_t first = 0; first < from.size(0); first += rows) {
    const int64_t count = std::min(rows, from.size(0) - first);
    pieces.emplace_back(from.narrow(0, first, count), to.narrow(0, first, count));
  }
}

void copy(const Pair& piece) {
  const c10::NoGradGuard no_gradient;
  const auto& [from, to] = piece;
  if (from.is_cpu() == to.is_cpu()) {
    to.copy_(from);
    return;
  }
  const at::Tensor locked = at::empty(  // the one before it, again
      from.sizes(), at::TensorOptions(to.scalar_type()).pinned_memory(true));
  to.copy_(locked.copy_(from));
}

// The caller's stream of the card that one of the tensors is on.
std::optional<c10::Stream> stream_for(const Pair& pair) {
  for (const at::Tensor& tensor : {pair.first, pair.second})
    if (tensor.is_cuda()) return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(tensor.device());
  return std::nullopt;
}

}  // namespace

PiecewiseCopying copying_with(at::Device device) {
  constexpr unsigned kThreads = 8;
  if (!device.is_cuda()) return {};
  return {.threads = std::clamp(std::thread::hardware_concurrency(), 1U, kThreads)};
}

void copy_in_pieces(const std::vector<Pair>& pairs, const PiecewiseCopying& how) {
  std::vector<Pair> pieces;
  for (const auto& [from, to] : pairs) add_pieces(from, to, how.piece, pieces);
  if (pieces.empty()) return;
  const std::optional<c10::Stream> stream = stream_for(pieces.front());
  on_threads(pieces.size(), how.threads, [&](size_t i) {
    const c10::OptionalStreamGuard on_stream(stream);
    copy(pieces[i]);
  });
}

std::vector<at::Tensor> copied_to_host(const std::vector<at::Tensor>& tensors, const PiecewiseCopying& how) {
  std::vector<Pair> pairs;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& tensor : tensors) {
    copies.push_back(at::empty(tensor.sizes(), tensor.options().device(at::kCPU)));
    pairs.emplace_back(tensor.detach(), copies.back());
  }
  copy_in_pieces(pairs, how);
  return copies;
}

}  // namespace flashmorph
