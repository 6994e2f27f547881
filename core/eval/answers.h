#pragma once

#include <cstdint>
#include <vector>

#include "core/morph/morphable_model.h"
#include "core/tasks/task.h"

namespace flashmorph {

// What the model writes behind each sample's prompt, all of them together (decoder.h), until its end-of-text token or
// the sample's most tokens. Forced: the likeliest token at the place of each of the sample's words, behind the right
// words. Each token list is the same on all ranks of a pipeline.
std::vector<std::vector<int32_t>> answers(const MorphableModel& model, const Routes& routes,
                                          const std::vector<TaskSample>& samples, const Tokenizer& tokenizer,
                                          bool forced);

}  // namespace flashmorph
