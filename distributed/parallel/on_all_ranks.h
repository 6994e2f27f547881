#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/base/endings.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

// Runs `work`, which may fail on some ranks only (a file, a slice of a checkpoint), and makes the outcome common: when
// any rank threw, every rank throws what the lowest failing one did, a BadInput or Stopped as such, else a
// CommonFailure. So nobody is left waiting in a collective for a rank that has given up. `work` itself must not
// communicate.
void on_all_ranks(Communicator& world, const std::function<void()>& work);
// Every rank's text, in rank order, on every rank.
std::vector<std::string> gather_text(const std::string& text, Communicator& world);

}  // namespace flashmorph
