#pragma once

#include "core/tasks/task.h"

namespace flashmorph {

// Four passkeys of eight words in the text, as PasskeyTask places them, and the first question.
TaskSample passkey_words(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);

}  // namespace flashmorph
