#include "core/eval/answers.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "core/eval/decoder.h"
#include "core/ops/vocabulary_loss.h"

namespace flashmorph {
namespace {

std::vector<int32_t> forced_answer(const MorphableModel& model, const Routes& routes, const TaskSample& sample) {
  std::vector<int32_t> tokens = sample.prompt;
  tokens.insert(tokens.end(), sample.words.begin(), sample.words.end());
  const auto length = static_cast<int64_t>(tokens.size()), count = static_cast<int64_t>(sample.words.size());
  const at::Tensor tokens_1T = at::tensor(tokens, at::kInt).to(at::kLong).unsqueeze(0);
  const at::Tensor hidden = model.forward(tokens_1T, routes, model.positions(0, length));
  at::Tensor predicted = at::zeros({count}, at::kLong);
  if (model.has_head())
    predicted.copy_(greedy_tokens(hidden[0].narrow(0, length - count - 1, count), model.head(), model.shard()));
  model.pipeline_peers().share_last(predicted);
  const auto* first = predicted.const_data_ptr<int64_t>();
  return {first, first + count};
}

}  // namespace

std::vector<std::vector<int32_t>> answers(const MorphableModel& model, const Routes& routes,
                                          const std::vector<TaskSample>& samples, const Tokenizer& tokenizer,
                                          bool forced) {
  const c10::NoGradGuard no_gradient;
  std::vector<std::vector<int32_t>> given;
  if (forced) {
    for (const TaskSample& sample : samples) given.push_back(forced_answer(model, routes, sample));
    return given;
  }
  if (samples.empty()) return given;
  int64_t room = 0;
  std::vector<int64_t> most;
  for (const TaskSample& sample : samples) {
    most.push_back(sample.most);
    room = std::max(room, static_cast<int64_t>(sample.prompt.size()) + sample.most);
  }
  Decoder decoder(model, routes, static_cast<int64_t>(samples.size()), room);
  for (size_t i = 0; i < samples.size(); ++i) decoder.read(static_cast<int64_t>(i), samples[i].prompt);
  const int32_t end = tokenizer.end_of_text();
  return decoder.write(most, [end](int64_t, const Decoder::Written& so_far) { return so_far.back() == end; });
}

}  // namespace flashmorph
