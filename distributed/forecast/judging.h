#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "distributed/forecast/cards.h"
#include "distributed/forecast/run_forecast.h"

namespace flashmorph {

// What discretize asks of its judges (HardMixtureJudge) until plans are settled: the run's own methods, asking one that
// finds each set worse than those before it. So no exchange is made, and what a run does is at least this.
struct JudgingForecast {
  Layout layout;          // evaluate's
  int64_t samples = 0;    // of a set,
  int64_t finalists = 0;  // and of those that are judged once more; 0: none are
  int64_t sets = 0;       // judged, on so many samples or on the others
  // By the samples' length: forwards of kSamplesAtATime of them, by each data rank, in whole models; the layers in
  // front of those that differ are left out, and the teacher's are among them.
  std::map<int64_t, double> forwards;
};

// None when no method of the run asks a judge. The config has passed check_settings.
std::optional<JudgingForecast> forecast_judging(const RunConfig& config, const ModelSpec& spec, int64_t ranks);

double seconds_of(const JudgingForecast& judging, const RunConfig& config, const ModelSpec& spec, int64_t ranks,
                  const Card& card);

}  // namespace flashmorph
