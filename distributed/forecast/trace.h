#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/rehearsal/kernel_counter.h"

namespace flashmorph {

// Where a rank meets others of a group.
struct Meeting {
  enum class Kind {
    collective,  // waited for
    begun,       // a collective that goes on while the rank does something else
    awaited,     // the end of the collective begun as number `peer` of the step
    sent,        // to rank `peer` of the group; not waited for
    received,    // from rank `peer`
    end,         // of the step
  };
  Kind kind = Kind::end;
  std::string group;
  std::string operation;  // all_reduce, ...
  double bytes = 0.0;     // of this rank's tensor
  int64_t peer = 0;
};

// What a rank's card does until it meets others.
struct Stretch {
  std::vector<Kernel> kernels;
  Meeting meeting;
};

using Trace = std::vector<Stretch>;  // a rank's step, in order

}  // namespace flashmorph
