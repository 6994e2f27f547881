#include "distributed/checkpoint/host_copies.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "core/base/on_threads.h"

namespace flashmorph {
namespace {

using Piece = std::pair<at::Tensor, at::Tensor>;  // from, to

void add_pieces(const at::Tensor& from, const at::Tensor& to, int64_t bytes, std::vector<Piece>& pieces) {
  const int64_t row = std::max<int64_t>(1, from.size(1) * static_cast<int64_t>(from.element_size()));
  const int64_t rows = std::max<int64_t>(1, bytes / row);
  for (int64_t first = 0; first < from.size(0); first += rows) {
    const int64_t count = std::min(rows, from.size(0) - first);
    pieces.emplace_back(from.narrow(0, first, count), to.narrow(0, first, count));
  }
}

void copy(const Piece& piece) {
  const c10::NoGradGuard no_gradient;
  const auto& [from, to] = piece;
  if (!from.is_cuda()) {
    to.copy_(from);
    return;
  }
  const at::Tensor locked = at::empty(from.sizes(), to.options().pinned_memory(true));  // the one before it, again
  to.copy_(locked.copy_(from));
}

}  // namespace

HostCopying host_copying_from(at::Device device) {
  constexpr unsigned kThreads = 8;
  if (!device.is_cuda()) return {};
  return {.threads = std::clamp(std::thread::hardware_concurrency(), 1U, kThreads)};
}

std::vector<at::Tensor> copied_to_host(const std::vector<at::Tensor>& tensors, const HostCopying& how) {
  std::vector<at::Tensor> copies;
  std::vector<Piece> pieces;
  for (const at::Tensor& tensor : tensors) {
    copies.push_back(at::empty(tensor.sizes(), tensor.options().device(at::kCPU)));
    add_pieces(tensor.detach(), copies.back(), how.piece, pieces);
  }
  on_threads(pieces.size(), how.threads, [&](size_t i) { copy(pieces[i]); });
  return copies;
}

}  // namespace flashmorph
