#include "core/eval/pace.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/eval/decoder.h"

namespace flashmorph {
namespace {

constexpr int kRuns = 3;

// The medians of what several runs took, after one that also sets up.
template <size_t N, class Run>
std::array<double, N> medians(const Run& run) {
  run();
  std::array<std::vector<double>, N> times;
  for (int i = 0; i < kRuns; ++i) {
    const std::array<double, N> took = run();
    for (size_t n = 0; n < N; ++n) times[n].push_back(took[n]);
  }
  std::array<double, N> middle;
  for (size_t n = 0; n < N; ++n) {
    std::ranges::sort(times[n]);
    middle[n] = times[n][kRuns / 2];
  }
  return middle;
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
  const auto [prefill, step] = medians<2>([&] {
    Decoder decoder(model, routes, rows, length + tokens + 1);
    const Stopwatch reading;
    for (int64_t row = 0; row < rows; ++row) decoder.read(row, prompt);
    const auto first = decoder.write(std::vector<int64_t>(static_cast<size_t>(rows), 1), never);
    const double read = reading.seconds();
    for (int64_t row = 0; row < rows; ++row) decoder.read(row, first[static_cast<size_t>(row)]);
    const Stopwatch writing;
    decoder.write(std::vector<int64_t>(static_cast<size_t>(rows), tokens), never);
    const double wrote = writing.seconds();
    const Decoder::Memory memory = decoder.memory();
    pace.kv_bytes = memory.kv_bytes;
    pace.state_bytes = memory.state_bytes;
    return std::array{read, wrote / static_cast<double>(std::max<int64_t>(1, tokens - 1))};
  });
  pace.prefill_seconds = prefill;
  pace.token_seconds = step;
  return pace;
}

double attention_seconds(const MorphableModel& model, int64_t layer, const Route& route, int64_t length) {
  const c10::NoGradGuard no_gradient;
  const Placement& placement = model.placement();
  const at::Tensor states =
      at::randn({1, length, model.spec().hidden}, at::TensorOptions(placement.dtype).device(placement.device));
  const auto [seconds] = medians<1>([&] {
    LayerCache cache = empty_cache(model, layer, route, 1, length);
    const Stopwatch reading;
    at::Tensor read;
    for (int64_t first = 0; first < length; first += Decoder::kChunk) {
      const int64_t part = std::min(Decoder::kChunk, length - first);
      read = model.attend(layer, states.narrow(1, first, part), route, model.positions(first, part), &cache);
    }
    read.select(1, -1).sum().item<double>();  // waits for a device as well
    return std::array{reading.seconds()};
  });
  return seconds;
}

}  // namespace flashmorph
