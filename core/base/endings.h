#pragma once

#include <stdexcept>

#include "core/base/bad_input.h"

// How the program ends: what is thrown on the way, and what it exits with. docs/operations.md says what each exit code
// asks of whoever started it.

namespace flashmorph {

inline constexpr int kBadInput = 2;       // BadInput: what the user gave us; nothing on disk has changed
inline constexpr int kFailed = 3;         // CommonFailure, or any other exception on one rank
inline constexpr int kHung = 4;           // a deadline passed: the watchdog ends the process
inline constexpr int kStoppedEarly = 75;  // Stopped: the same command goes on

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

}  // namespace flashmorph
