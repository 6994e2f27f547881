#pragma once

#include "distributed/communication/communicator.h"

namespace flashmorph::test {

// All ranks of this test program.
Communicator& world();

}  // namespace flashmorph::test
