#pragma once

#include "core/tasks/task.h"

namespace flashmorph {

// A chain of assignments among lines of noise, VAR B = VAR A four times over: which variables hold the first one's
// value? RULER's variable tracking with one chain of four hops, an example in front.
TaskSample variable_chain(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);

}  // namespace flashmorph
