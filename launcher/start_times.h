#pragma once

#include <string>
#include <utility>
#include <vector>

namespace flashmorph {

// What the time before a run's first stage went into, from the start of this process.
class StartTimes {
 public:
  void done(const std::string& part);  // all since the part before, or since the process's start
  std::string text() const;            // "4.1 s: MPI 0.5, device 1.2, weights 2.4"

 private:
  double last_ = 0.0;  // seconds of the process when the part before was done
  std::vector<std::pair<std::string, double>> parts_;
};

}  // namespace flashmorph
