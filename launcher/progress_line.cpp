#include "launcher/progress_line.h"

#include <fmt/format.h>
#include <unistd.h>

namespace flashmorph {
namespace {

double between(bool live) { return live ? 0.2 : 10.0; }  // seconds

}  // namespace

ProgressLine::ProgressLine() : live_(isatty(STDERR_FILENO) != 0), next_(between(live_)) {}

void ProgressLine::show(const std::function<std::string()>& text) {
  if (seconds() < next_) return;
  next_ = seconds() + between(live_);
  fmt::print(stderr, fmt::runtime(live_ ? "\r{}\x1b[K" : "{}\n"), text());
  drawn_ = true;
}

void ProgressLine::finish(const std::function<std::string()>& text) {
  if (live_ && drawn_) fmt::print(stderr, "\r{}\x1b[K\n", text());
}

}  // namespace flashmorph
