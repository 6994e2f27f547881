#include "core/eval/pace.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/eval/decoder.h"

namespace flashmorph {
namespace {

constexpr int kRuns = 3;

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary) {
  KeyedRandom random{static_cast<uint64_t>(count)};
  std::vector<int32_t> tokens;
  while (static_cast<int64_t>(tokens.size()) < count)
    tokens.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary))));
  return tokens;
}

}  // namespace

Pace pace_of(const MorphableModel& model, const Routes& routes, int64_t length, int64_t rows, int64_t tokens) {
  const std::vector<int32_t> prompt = random_tokens(length, model.spec().vocabulary);
  const auto never = [](int64_t, const Decoder::Written&) { return false; };
  Pace pace{.length = length, .rows = rows};
  std::vector<double> prefills, steps;
  for (int run = 0; run <= kRuns; ++run) {
    Decoder decoder(model, routes, rows, length + tokens + 1);
    const Stopwatch reading;
    for (int64_t row = 0; row < rows; ++row) decoder.read(row, prompt);
    const auto first = decoder.write(std::vector<int64_t>(static_cast<size_t>(rows), 1), never);
    prefills.push_back(reading.seconds());
    for (int64_t row = 0; row < rows; ++row) decoder.read(row, first[static_cast<size_t>(row)]);
    const Stopwatch writing;
    decoder.write(std::vector<int64_t>(static_cast<size_t>(rows), tokens), never);
    steps.push_back(writing.seconds() / static_cast<double>(std::max<int64_t>(1, tokens - 1)));
    const Decoder::Memory memory = decoder.memory();
    pace.kv_bytes = memory.kv_bytes;
    pace.state_bytes = memory.state_bytes;
    if (run == 0) prefills.clear(), steps.clear();  // it also sets up
  }
  pace.prefill_seconds = median(prefills);
  pace.token_seconds = median(steps);
  return pace;
}

}  // namespace flashmorph
