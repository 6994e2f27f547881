#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// The run cannot go on, and every rank knows: all of them throw it with the same words.
class CommonFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A person or a scheduler asked to stop, or the time is over: the run ends where it can go on later.
class Stopped : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `work`, which may fail on some ranks only (a file, a slice of a checkpoint), and makes the outcome common: when
// any rank threw, every rank throws what the lowest failing one did, a BadInput or Stopped as such, else a
// CommonFailure. So nobody is left waiting in a collective for a rank that has given up. `work` itself must not
// communicate.
void on_all_ranks(Communicator& world, const std::function<void()>& work);
// Every rank's text, in rank order, on every rank.
std::vector<std::string> gather_text(const std::string& text, Communicator& world);

}  // namespace flashmorph
