#pragma once

#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/config/run_config.h"
#include "distributed/stages/context.h"
#include "launcher/cost.h"

namespace flashmorph {

// The run as Prometheus metrics, served by GET at http://ADDRESS/metrics while this object lives; docs/metrics.md lists
// them. Every series carries the run's name. Series by layer, stage, model, length and rank only: their number is
// bounded by the model, the configuration and the mesh.
class Metrics : public StageObserver {
 public:
  // BadInput at metrics.listen when the address cannot be listened at.
  Metrics(const RunConfig& config, const std::string& version);
  ~Metrics() override;

  void cost(const StageUse& use);

  // Where it listens, with the port that the system chose for port 0.
  const std::string& address() const { return address_; }

  // A file for Prometheus' file_sd_configs that names this endpoint. The run removes it when it ends as it should, so
  // that only a run that is lost is missed by the alerts.
  void write_target(const std::filesystem::path& file) const;

  void started(const StageStart& start) override;
  void resumed(int64_t steps, int64_t tokens) override;
  void stepped(const StepReport& report) override;
  void gates_moved(const StepReport& report, const proto::GateStep& gates,
                   const std::vector<int64_t>& top_layers) override;
  void recalled(const RecallReport& report) override;
  void scored(const TaskReport& report) override;
  void saved(int64_t step, double seconds) override;
  void ranks(const std::vector<RankVitals>& vitals) override;
  void measured(const proto::Measurement& measurement) override;
  void warn(const std::string& warning) override;

 private:
  using Labels = std::map<std::string, std::string>;
  prometheus::Gauge& gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  double step_done(int64_t step);

  std::string run_, address_;
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Counter* warnings_ = nullptr;
  prometheus::Family<prometheus::Counter>* tokens_ = nullptr;
  prometheus::Family<prometheus::Histogram>* step_seconds_ = nullptr;
  std::unique_ptr<prometheus::Exposer> exposer_;

  StageStart stage_;
  Stopwatch since_step_;
  int64_t counted_tokens_ = 0;  // of the current stage
  std::vector<double> last_gates_;
};

}  // namespace flashmorph
