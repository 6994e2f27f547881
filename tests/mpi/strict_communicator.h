#pragma once

#include <memory>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph::test {

// What a program may count on over NCCL, which is less than MPI gives: no message is held for a receiver that is not
// there yet. send waits until the message was received, finish_sends until all were, and send_later between ranks that
// did not connect ends the job; what is given to a collective stays as it is until the result is here. A program that
// needs more hangs here, or fails, as it would on cards.
// In `diary`, if any, stands what is begun and waited for, here and in all that is split off: "+1 +2 -1".
std::unique_ptr<Communicator> strict_communicator(std::unique_ptr<Communicator> inner, std::string* diary = nullptr);

}  // namespace flashmorph::test
