#include "launcher/metrics.h"

#include <fmt/format.h>
#include <netdb.h>
#include <prometheus/counter.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/base/bad_input.h"
#include "core/base/host_name.h"
#include "core/io/atomic_file.h"
#include "proto/run.pb.h"

namespace flashmorph {
namespace {

const prometheus::Histogram::BucketBoundaries kStepSeconds = {0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100};

// A connection that asks nothing.
void knock_at(const std::string& address) {
  const size_t colon = address.rfind(':');
  addrinfo kind{}, *found = nullptr;
  kind.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &kind, &found) != 0) return;
  const int connection = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection >= 0) {
    (void)connect(connection, found->ai_addr, found->ai_addrlen);
    close(connection);
  }
  freeaddrinfo(found);
}

}  // namespace

Metrics::Metrics(const RunConfig& config, const std::string& version)
    : run_(config.run.name), registry_(std::make_shared<prometheus::Registry>()) {
  const std::string& listen = config.metrics.listen;
  try {
    // A client that sends nothing holds a thread until the timeout; the others go on serving.
    exposer_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", listen, "num_threads", "4", "request_timeout_ms", "5000"});
  } catch (const std::exception&) {
    throw BadInput("metrics.listen",
                   fmt::format("'{}' cannot be listened at; give another port, or port 0 for any free one", listen));
  }
  address_ = listen.substr(0, listen.rfind(':') + 1) + std::to_string(exposer_->GetListeningPorts().front());
  warnings_ = &prometheus::BuildCounter()
                   .Name("flashmorph_warnings_total")
                   .Help("Warnings so far.")
                   .Register(*registry_)
                   .Add({{"run", run_}});
  tokens_ = &prometheus::BuildCounter()
                 .Name("flashmorph_tokens_total")
                 .Help("Tokens trained on, by stage.")
                 .Register(*registry_);
  step_seconds_ = &prometheus::BuildHistogram()
                       .Name("flashmorph_step_seconds")
                       .Help("Wall time of a step, by stage.")
                       .Register(*registry_);
  gauge("flashmorph_run_info", "Always 1; its labels say what runs.",
        {{"model", config.model.path}, {"mixer", config.mixer.kind}, {"version", version}})
      .Set(1);
  gauge("flashmorph_checkpoint_every_steps",
        "Steps between two checkpoints of a stage; 0: none but when the run is stopped.")
      .Set(static_cast<double>(config.checkpoint.every));
  exposer_->RegisterCollectable(registry_, "/metrics$");  // $: nothing below it
}

// The server sees that it shall stop when somebody knocks, or only after two seconds.
Metrics::~Metrics() {
  const std::jthread knocking([this](const std::stop_token& closed) {
    for (; !closed.stop_requested(); std::this_thread::sleep_for(std::chrono::milliseconds(10))) knock_at(address_);
  });
  exposer_.reset();
}

void Metrics::write_target(const std::filesystem::path& file) const {
  const size_t colon = address_.rfind(':');
  const std::string host = address_.substr(0, colon), port = address_.substr(colon);
  const std::string reachable = host.empty() || host == "0.0.0.0" ? host_name() : host;
  write_file_atomically(file, nlohmann::json::array({{{"targets", {reachable + port}}}}).dump() + "\n");
}

prometheus::Gauge& Metrics::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  Labels all = labels;
  all["run"] = run_;
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(all);
}

void Metrics::started(const StageStart& start) {
  const auto active = [&](double value) {
    if (stage_.stage.empty()) return;
    gauge("flashmorph_stage_active", "1 for the stage that runs, 0 for those before.",
          {{"stage", stage_.stage}, {"what", stage_.what}})
        .Set(value);
  };
  active(0);
  stage_ = start;
  active(1);
  gauge("flashmorph_steps", "Steps planned, by stage.", {{"stage", start.stage}}).Set(static_cast<double>(start.steps));
  gauge("flashmorph_stage_started_timestamp_seconds", "When the stage began in this start of the run, Unix time.",
        {{"stage", start.stage}})
      .Set(unix_time());
  counted_tokens_ = 0;
  last_gates_.clear();
  since_step_ = Stopwatch();
}

void Metrics::resumed(int64_t, int64_t tokens) { counted_tokens_ = tokens; }

// The seconds that it took.
double Metrics::step_done(int64_t step) {
  const double seconds = since_step_.seconds();
  since_step_ = Stopwatch();
  gauge("flashmorph_step", "Steps done, by stage.", {{"stage", stage_.stage}}).Set(static_cast<double>(step));
  gauge("flashmorph_last_step_timestamp_seconds", "When the last step ended, Unix time.").Set(unix_time());
  step_seconds_->Add({{"run", run_}, {"stage", stage_.stage}}, kStepSeconds).Observe(seconds);
  return seconds;
}

void Metrics::recalled(const RecallReport& report) { step_done(report.step); }

void Metrics::stepped(const StepReport& report) {
  const double seconds = step_done(report.step);
  const Labels stage = {{"stage", stage_.stage}};
  const auto step_tokens = static_cast<double>(report.tokens - counted_tokens_);
  counted_tokens_ = report.tokens;
  tokens_->Add({{"run", run_}, {"stage", stage_.stage}}).Increment(step_tokens);
  gauge("flashmorph_tokens_per_second", "Pace of the last step, by stage.", stage)
      .Set(step_tokens / std::max(seconds, 1e-9));
  gauge("flashmorph_loss", "What the stage minimises, at the last step.", stage).Set(report.loss);
  gauge("flashmorph_learning_rate", "Of the last step, by stage.", stage).Set(report.learning_rate);
}

void Metrics::gates_moved(const StepReport& report, const proto::GateStep& gates,
                          const std::vector<int64_t>& top_layers) {
  stepped(report);
  gauge("flashmorph_alignment_loss", "Select's error against the teacher on the answers, at the last step.")
      .Set(gates.loss() - gates.regularizer());
  gauge("flashmorph_regularizer", "Select's pull on the gates, lambda times their sum, at the last step.")
      .Set(gates.regularizer());
  gauge("flashmorph_gate_price", "The lambda that holds select's gates where they are, at the last step.")
      .Set(gates.price());
  gauge("flashmorph_gates_cost", "What select's gates cost at the last step, in the budget's unit.").Set(gates.cost());
  double least_kept = 1.0, most_dropped = 0.0;
  for (int layer = 0; layer < gates.alpha_size(); ++layer) {
    const double gate = gates.alpha(layer);
    const bool kept = std::ranges::count(top_layers, layer) > 0;
    const Labels labels = {{"layer", std::to_string(layer)}};
    gauge("flashmorph_gate", "The layer's gate: 1 full attention, 0 linear.", labels).Set(gate);
    gauge("flashmorph_gate_kept", "1 when the budget would keep the layer now.", labels).Set(kept);
    gauge("flashmorph_gate_movement", "How far the gate moved in the last step.", labels)
        .Set(last_gates_.empty() ? 0.0 : std::abs(gate - last_gates_[static_cast<size_t>(layer)]));
    (kept ? least_kept : most_dropped) = kept ? std::min(least_kept, gate) : std::max(most_dropped, gate);
  }
  last_gates_.assign(gates.alpha().begin(), gates.alpha().end());
  gauge("flashmorph_gate_margin", "Smallest kept gate minus largest dropped one.").Set(least_kept - most_dropped);
}

void Metrics::scored(const TaskReport& report) { step_done(report.step); }

void Metrics::cost(const StageUse& use) {
  const Labels stage = {{"stage", use.stage}};
  gauge("flashmorph_stage_rank_seconds", "Wall time of a finished stage times its ranks.", stage)
      .Set(3600.0 * use.rank_hours());
  if (use.flop) gauge("flashmorph_stage_flop", "Operations of a finished stage that trains.", stage).Set(*use.flop);
  if (use.of_peak)
    gauge("flashmorph_stage_peak_ratio", "Its operations a second and rank, as a share of the card's peak.", stage)
        .Set(*use.of_peak);
  if (use.price) gauge("flashmorph_stage_price", "What it cost, by report.price_per_gpu_hour.", stage).Set(*use.price);
}

void Metrics::saved(int64_t, double) {
  gauge("flashmorph_checkpoint_last_success_timestamp_seconds",
        "When the last checkpoint was whole on disk, Unix time.")
      .Set(unix_time());
}

void Metrics::ranks(const std::vector<RankVitals>& vitals) {
  for (const RankVitals& one : vitals) {
    const Labels rank = {{"rank", std::to_string(one.rank)}, {"host", one.host}};
    gauge("flashmorph_rank_step_seconds", "Wall time of a step, the mean over the last ones.", rank)
        .Set(one.step_seconds);
    gauge("flashmorph_rank_communication_seconds",
          "Of a step, inside collectives and messages, waiting for others included.", rank)
        .Set(one.communication_seconds);
    gauge("flashmorph_rank_resident_bytes", "Memory of the rank's process.", rank)
        .Set(static_cast<double>(one.resident_bytes));
  }
}

void Metrics::measured(const proto::Measurement& measurement) {
  const Labels model = {{"model", measurement.name()}, {"after", measurement.after()}};
  gauge("flashmorph_perplexity", "On held-out text.", model).Set(measurement.perplexity());
  for (const proto::RecallAtLength& recall : measurement.recall()) {
    if (recall.teacher_forced().words() == 0) continue;
    Labels labels = model;
    labels["length"] = std::to_string(recall.length());
    gauge("flashmorph_recall_ratio", "Right passkey words on held-out text, teacher-forced.", labels)
        .Set(static_cast<double>(recall.teacher_forced().right_words()) /
             static_cast<double>(recall.teacher_forced().words()));
  }
  for (const proto::TaskScore& score : measurement.tasks()) {
    Labels labels = model;
    labels["task"] = score.task();
    labels["length"] = std::to_string(score.length());
    gauge("flashmorph_task_score", "Mean score of a long-context task, 0 to 1.", labels).Set(score.score());
  }
}

void Metrics::warn(const std::string&) { warnings_->Increment(); }

}  // namespace flashmorph
