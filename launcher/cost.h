#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "distributed/run/run_record.h"
#include "distributed/stages/observer.h"

namespace flashmorph {

class Journal;
class Metrics;

// What a finished stage of a run took.
struct StageUse {
  std::string stage;  // "distill uniform"
  int64_t tokens = 0;
  double seconds = 0.0;
  int64_t ranks = 0;                   // 0: not known, of a run of an older program
  std::optional<double> flop = {};     // of a stage that trains; recomputing not counted
  std::optional<double> of_peak = {};  // MFU: these operations a second and rank, as a share of its card's peak
  std::optional<double> price = {};    // where report.price_per_gpu_hour is given

  double rank_hours() const { return flashmorph::rank_hours(seconds, ranks); }
};

// Its operations are those that the journal has, or, where it has none, rehearsed if the model is still there.
StageUse use_of(const proto::StageResult& done, const RunRecord& record);

// {"stage": ..., "tokens": ..., "seconds": ..., "rank_hours": ...}; what is not known is not there.
nlohmann::ordered_json json_of(const StageUse& use);

// Tells the journal and the metrics, where there are any, what each stage took as it ends.
class CostRecorder : public StageObserver {
 public:
  CostRecorder(std::filesystem::path folder, Journal& journal, Metrics* metrics)
      : folder_(std::move(folder)), journal_(journal), metrics_(metrics) {}

  void finished(const std::string& stage, double seconds) override;

 private:
  std::filesystem::path folder_;
  Journal& journal_;
  Metrics* metrics_;
};

}  // namespace flashmorph
