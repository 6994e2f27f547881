#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/morph/morphable_model.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// A question with several answers, one of them right.
struct ChoiceItem {
  std::string context;
  std::vector<std::string> choices;  // as they go on after the context, with the blank in front where there is one
  int64_t answer = 0;
};

// A file of JSON lines, {"context": ..., "choices": [...], "answer": index or text}; other keys are passed over.
// BadInput names the line.
std::vector<ChoiceItem> read_choices(const std::filesystem::path& file);

// log p(choice | context) of each choice, the sum over its tokens. The choice's tokens are those of context and choice
// together behind as many as the context alone has. On a pipeline the last rank's; zeros on the others.
std::vector<double> choice_likelihoods(const MorphableModel& model, const Routes& routes, const Tokenizer& tokenizer,
                                       const ChoiceItem& item);

// Whether the right choice has the greatest likelihood, as it is and divided by the choice's bytes; the first among
// equals counts.
struct ChoiceVerdict {
  bool right;
  bool right_by_length;
};
ChoiceVerdict verdict(const ChoiceItem& item, const std::vector<double>& likelihoods);

}  // namespace flashmorph
