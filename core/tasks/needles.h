#pragma once

#include "core/tasks/task.h"

namespace flashmorph {

// Sentences that give a name its value, hidden in a long text, and a question about some of the names: RULER's eight
// needle-in-a-haystack tasks.
TaskSample needle_in_noise(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample needle_in_prose(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample uuid_in_prose(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample keys_in_prose(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample keys_only(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample uuid_keys_only(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample values_in_prose(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);
TaskSample queries_in_prose(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);

}  // namespace flashmorph
