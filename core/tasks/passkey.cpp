#include "core/tasks/passkey.h"

namespace flashmorph {

TaskSample passkey_words(const Task&, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  constexpr int64_t kPasskeys = 4, kWords = 8;
  const Sample sample = material.passkeys().make(material.tokens(), length, kPasskeys, kWords, random);
  const Answer& asked = sample.answers.front();
  const auto first = sample.tokens.begin() + asked.first;
  const int64_t words = asked.count - 1;  // without the newline that ends them
  return {.prompt = {sample.tokens.begin(), first},
          .references = {},
          .words = {first, first + words},
          .most = words,
          .depth = asked.depth};
}

}  // namespace flashmorph
