#include "launcher/device.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <c10/core/AutogradState.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "core/base/bad_input.h"
#include "core/base/host_name.h"
#include "distributed/communication/cuda_library.h"
#include "distributed/communication/device_communicator.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

// Ranks of this rank's host: its place among them and their number.
struct Neighbourhood {
  int64_t place = 0, ranks = 0;

  explicit Neighbourhood(Communicator& world) {
    const auto mine = static_cast<int64_t>(std::hash<std::string>()(host_name()));
    const at::Tensor hosts = world.all_gather(at::full({1}, mine, at::kLong)).flatten();
    for (int64_t rank = 0; rank < world.size(); ++rank) {
      if (hosts[rank].item<int64_t>() != mine) continue;
      if (rank < world.rank()) ++place;
      ++ranks;
    }
  }
};

// On Hopper cuDNN's flash attention is twice as fast as the one that comes first by default.
void prefer_cudnn_attention() {
  std::vector<int64_t> order;
  for (const at::SDPBackend backend : at::globalContext().sDPPriorityOrder())
    order.push_back(static_cast<int64_t>(backend));
  std::ranges::stable_partition(
      order, [](int64_t backend) { return backend == static_cast<int64_t>(at::SDPBackend::cudnn_attention); });
  at::globalContext().setSDPPriorityOrder(order);
}

// Autograd would give a card's work to a thread of its own, and hand over and back costs the host several launches:
// align has a backward pass a layer. A rank has one card, so there is nothing to do side by side.
void run_backward_on_this_thread() { c10::AutogradState::get_tls_state().set_multithreading_enabled(false); }

}  // namespace

RunDevice::RunDevice(const DeviceSection& config, Communicator& host, double deadline) : host_(host) {
  if (config.kind != "cuda") return;
  const CudaLibrary* cuda = nullptr;
  std::optional<BadInput> missing;  // told after the first torch operation, which comes after opening
  try {
    cuda = &open_cuda();
  } catch (const BadInput& fault) {
    missing = fault;
  }
  on_all_ranks(host, [&] {
    if (missing) throw *missing;
    if (cuda->card_count() < 1) throw BadInput("device.kind", "is cuda, and " + host_name() + " shows no card");
  });

  const Neighbourhood here(host);
  const int cards = cuda->card_count(), card = static_cast<int>(here.place % cards);
  place_ = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(card));
  cuda->use_card(card);
  prefer_cudnn_attention();
  run_backward_on_this_thread();

  at::Tensor shared = at::full({1}, static_cast<int64_t>(here.ranks > cards), at::kLong);
  host.all_reduce(shared, Reduction::max);
  const bool nccl = shared.item<int64_t>() == 0;
  std::unique_ptr<Communicator> own = host.split(0, host.rank(), "world");
  world_ = nccl ? cuda->nccl(std::move(own), card, deadline) : staged_communicator(std::move(own));
  description_ =
      fmt::format("{}, {} rank{} to {} card{} of a host: {}", cuda->card_name(card), here.ranks,
                  here.ranks == 1 ? "" : "s", std::min<int64_t>(cards, here.ranks),
                  std::min<int64_t>(cards, here.ranks) == 1 ? "" : "s", nccl ? "NCCL" : "MPI through host memory");
}

}  // namespace flashmorph
