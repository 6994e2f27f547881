#pragma once

#include <chrono>

namespace flashmorph {

// All times in seconds.

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Runs from where it is made, or assigned anew; goes on behind what an earlier one had.
class Stopwatch {
 public:
  explicit Stopwatch(double seconds_before = 0.0) : before_(seconds_before) {}
  double seconds() const { return before_ + seconds_since(start_); }

 private:
  double before_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace flashmorph
