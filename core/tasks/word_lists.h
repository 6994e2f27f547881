#pragma once

#include "core/tasks/task.h"

namespace flashmorph {

// Ten words that a numbered list holds thirty times each among others that it holds three times (in short lists six
// times and once), an example in front: RULER's common words extraction.
TaskSample common_words(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);

// The three most frequent words of a text of made-up words whose frequencies fall with the square of their rank (Zipf),
// behind a filler that comes first: RULER's frequent words extraction.
TaskSample frequent_words(const Task&, const TaskMaterial&, int64_t length, KeyedRandom&);

}  // namespace flashmorph
