#pragma once

#include <memory>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// What the program finds in libflashmorph_cuda.so, beside the operators' CUDA forms, which register themselves. The
// program itself is linked to no CUDA library.
struct CudaLibrary {
  int (*card_count)();
  std::string (*card_name)(int card);
  void (*use_card)(int card);  // for this thread's torch operations

  // A group whose device tensors, all on `card`, go through NCCL; each rank has a card of its own. A call that takes
  // longer than `deadline` seconds, or whose peers fail, ends the group: the next call throws CommunicationError.
  std::unique_ptr<Communicator> (*nccl)(std::unique_ptr<Communicator> host, int card, double deadline);
};

// Opens torch's CUDA library and then ours. To be called before the process's first torch operation: an operation
// settles for good whether there is CUDA. BadInput at device.kind when one cannot be opened.
const CudaLibrary& open_cuda();

}  // namespace flashmorph
