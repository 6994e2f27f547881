#include "core/tasks/passkey.h"

namespace flashmorph {

TaskSample passkey_words(const Task&, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  constexpr int64_t kPasskeys = 4, kWords = 8;
  const std::vector<int32_t>&before = material.before_message(), &after = material.after_message();
  const auto around = static_cast<int64_t>(before.size() + after.size());
  const PasskeyTask& passkeys = material.passkeys();
  const Sample sample = passkeys.make(material.tokens(), length - around, kPasskeys, kWords, random);
  const Answer& asked = sample.answers.front();
  const auto first = sample.tokens.begin() + asked.first;
  const int64_t words = asked.count - 1;  // without the newline that ends them
  return {.prompt = around > 0 ? passkeys.asked_in_chat(sample, asked, before, after)
                               : std::vector<int32_t>(sample.tokens.begin(), first),
          .references = {},
          .words = {first, first + words},
          .most = words,
          .depth = asked.depth};
}

}  // namespace flashmorph
