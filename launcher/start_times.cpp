#include "launcher/start_times.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <limits>

namespace flashmorph {
namespace {

// Its start is the 22nd field of /proc/self/stat, in ticks since the machine's: the second one ends with a bracket.
double seconds_of_process() {
  constexpr int kFieldsBetween = 19;
  std::ifstream stat("/proc/self/stat");
  stat.ignore(std::numeric_limits<std::streamsize>::max(), ')');
  std::string skipped;
  for (int field = 0; field < kFieldsBetween; ++field) stat >> skipped;
  double ticks = 0.0;
  timespec now{};
  if (!(stat >> ticks) || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0.0;
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace

void StartTimes::done(const std::string& part) {
  const double now = seconds_of_process();
  parts_.emplace_back(part, now - std::exchange(last_, now));
}

std::string StartTimes::text() const {
  std::string text = fmt::format("{:.1f} s", last_);
  for (size_t i = 0; i < parts_.size(); ++i)
    text += fmt::format("{} {} {:.1f}", i == 0 ? ":" : ",", parts_[i].first, parts_[i].second);
  return text;
}

}  // namespace flashmorph
