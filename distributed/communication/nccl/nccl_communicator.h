#pragma once

#include <memory>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// See CudaLibrary::nccl.
std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> host, int card, double deadline);

}  // namespace flashmorph
