#pragma once

#include <memory>

#include "distributed/communication/communicator.h"

namespace flashmorph::test {

// What a program may count on over NCCL, which is less than MPI gives: no message is held for a receiver that is not
// there yet. send waits until the message was received, finish_sends until all were, and send_later between ranks that
// did not connect ends the job. A program that needs more hangs here, as it would on cards.
std::unique_ptr<Communicator> strict_communicator(std::unique_ptr<Communicator> inner);

}  // namespace flashmorph::test
