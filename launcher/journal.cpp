#include "launcher/journal.h"

#include <nlohmann/json.hpp>

#include "core/base/clock.h"
#include "proto/run.pb.h"

namespace flashmorph {
namespace {

void append(std::ofstream& file, const nlohmann::ordered_json& line) { file << line.dump() << '\n' << std::flush; }

}  // namespace

Journal::Journal(const RunFolder& folder)
    : events_(folder.events_file(), std::ios::app), metrics_(folder.metrics_file(), std::ios::app) {}

void Journal::event(const std::string& name, const std::string& detail) {
  append(events_, {{"time", unix_time()}, {"event", name}, {"detail", detail}});
}

void Journal::cost(const StageUse& use) {
  nlohmann::ordered_json line = {{"time", unix_time()}, {"event", "stage_cost"}};
  line.update(json_of(use));
  append(events_, line);
}

void Journal::started(const StageStart& start) {
  stage_ = start;
  append(events_, {{"time", unix_time()},
                   {"event", "stage_started"},
                   {"stage", start.stage},
                   {"what", start.what},
                   {"steps", start.steps},
                   {"tokens", start.tokens}});
}

void Journal::resumed(int64_t steps, int64_t tokens) {
  append(events_, {{"time", unix_time()},
                   {"event", "stage_resumed"},
                   {"stage", stage_.stage},
                   {"what", stage_.what},
                   {"step", steps},
                   {"tokens", tokens}});
}

nlohmann::ordered_json Journal::line_of(const StepReport& report) const {
  return {{"time", unix_time()},
          {"stage", stage_.stage},
          {"what", stage_.what},
          {"step", report.step},
          {"tokens", report.tokens},
          {"loss", report.loss},
          {"learning_rate", report.learning_rate}};
}

void Journal::stepped(const StepReport& report) { append(metrics_, line_of(report)); }

void Journal::gates_moved(const StepReport& report, const proto::GateStep& gates,
                          const std::vector<int64_t>& top_layers) {
  nlohmann::ordered_json line = line_of(report);
  line["regularizer"] = gates.regularizer();
  line["gates"] = std::vector<double>(gates.alpha().begin(), gates.alpha().end());
  line["gate_price"] = gates.price();
  line["gates_cost"] = gates.cost();
  line["top_layers"] = top_layers;
  append(metrics_, line);
}

void Journal::recalled(const RecallReport& report) {
  append(metrics_, {{"time", unix_time()},
                    {"stage", stage_.stage},
                    {"what", stage_.what},
                    {"step", report.step},
                    {"length", report.length},
                    {"recall", report.recall}});
}

void Journal::scored(const TaskReport& report) {
  append(metrics_, {{"time", unix_time()},
                    {"stage", stage_.stage},
                    {"what", stage_.what},
                    {"step", report.step},
                    {"task", report.task},
                    {"length", report.length},
                    {"score", report.score}});
}

void Journal::saved(int64_t step, double seconds) {
  append(events_, {{"time", unix_time()},
                   {"event", "saved"},
                   {"stage", stage_.stage},
                   {"what", stage_.what},
                   {"step", step},
                   {"seconds", seconds}});
}

void Journal::exported(const std::string& format, int64_t tokens, double largest_difference) {
  append(events_, {{"time", unix_time()},
                   {"event", "exported"},
                   {"format", format},
                   {"tokens", tokens},
                   {"largest_logit_difference", largest_difference}});
}

void Journal::finished(const std::string& stage, double seconds) {
  append(events_, {{"time", unix_time()}, {"event", "stage_finished"}, {"stage", stage}, {"seconds", seconds}});
}

void Journal::skipped(const std::string& stage, const std::string& where) {
  event("stage_skipped", stage + ": " + where);
}

void Journal::note(const std::string& note) { event("note", note); }

void Journal::warn(const std::string& warning) { event("warning", warning); }

}  // namespace flashmorph
