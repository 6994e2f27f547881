#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "core/base/clock.h"

namespace flashmorph {

// One line on stderr that tells how far a command is: redrawn on a terminal, a plain line now and then elsewhere.
class ProgressLine {
 public:
  ProgressLine();

  // `text`: the line, made only when it is shown.
  void show(const std::function<std::string()>& text);
  // The last state, when any was drawn on a terminal.
  void finish(const std::function<std::string()>& text);

  double seconds() const { return watch_.seconds(); }  // since the start

 private:
  const bool live_;
  const Stopwatch watch_;
  double next_;
  bool drawn_ = false;
};

}  // namespace flashmorph
