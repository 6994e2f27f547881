#include "launcher/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <memory>

#include "core/io/atomic_file.h"
#include "launcher/commands.h"
#include "launcher/cost.h"
#include "launcher/report_template.h"

namespace flashmorph {
namespace {

using nlohmann::json;

json json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) throw std::runtime_error(message.GetTypeName() + ": " + status.ToString());
  return json::parse(text);
}

// As many steps as a chart can show, evenly, the last one among them: a long run's page stays small.
std::vector<json> shown_steps(std::vector<json> steps) {
  constexpr size_t kMost = 400;
  if (steps.size() <= kMost) return steps;
  std::vector<json> some;
  for (size_t i = 0; i < kMost; ++i) some.push_back(std::move(steps[i * (steps.size() - 1) / (kMost - 1)]));
  return some;
}

json gates_of(const RunRecord& record) {
  json history = json::array();
  for (const json& line : shown_steps(record.steps_of("select")))
    if (line.contains("gates")) history.push_back({{"step", line["step"]}, {"alpha", line["gates"]}});
  return history;
}

// A line of a chart: [tokens, value] of each step.
template <class Value>
json line_of(const std::string& name, const std::vector<json>& steps, const Value& value) {
  json points = json::array();
  for (const json& step : steps)
    if (step.contains("loss")) points.push_back({step.value("tokens", int64_t{0}), value(step)});
  return {{"name", name}, {"points", points}};
}

// A chart a stage: select's loss in its two parts, a hybrid's with a line a plan.
json losses_of(const RunRecord& record) {
  const auto loss = [](const json& step) { return step["loss"].get<double>(); };
  const auto pull = [](const json& step) { return step.value("regularizer", 0.0); };
  const auto error = [&](const json& step) { return loss(step) - pull(step); };
  const std::vector<json> aligned = shown_steps(record.steps_of("align")),
                          selected = shown_steps(record.steps_of("select"));
  json charts = json::array();
  charts.push_back({{"stage", "align"},
                    {"what", "squared error of the branches"},
                    {"lines", json::array({line_of("error", aligned, loss)})}});
  charts.push_back({{"stage", "select"},
                    {"what", "error on the answers, and the pull on the gates"},
                    {"lines", json::array({line_of("error", selected, error), line_of("pull", selected, pull)})}});
  for (const auto& [stage, what] :
       {std::pair{"distill", "distance from the teacher (KL)"}, {"finetune", "next token"}}) {
    json lines = json::array();
    for (const proto::HybridPlan& plan : record.plans.plans())
      lines.push_back(line_of(plan.name(), shown_steps(record.steps_of(stage, plan.name())), loss));
    charts.push_back({{"stage", stage}, {"what", what}, {"lines", lines}});
  }
  return charts;
}

// The finished stages, with what they took where that is known.
json stages_of(const RunRecord& record) {
  json stages = json_of(record.state)["finished"];
  for (size_t i = 0; i < stages.size(); ++i)
    stages[i].update(json(json_of(use_of(record.state.finished(static_cast<int>(i)), record))));
  return stages;
}

// Inside <script> only "</" could end the JSON early.
std::string embeddable(const json& data) {
  std::string text = data.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  for (size_t at = text.find("</"); at != std::string::npos; at = text.find("</", at)) text.replace(at, 2, "<\\/");
  return text;
}

}  // namespace

std::string report_page(const RunRecord& record) {
  const json data = {{"name", record.config.run.name},
                     {"model", record.config.model.path},
                     {"mixer", record.config.mixer.kind},
                     {"finished", record.finished()},
                     {"written", fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(std::time(nullptr)))},
                     {"version", FLASHMORPH_VERSION},
                     {"seed", record.config.run.seed},
                     {"source_hash", record.state.source_hash()},
                     {"layers", record.layers},
                     {"config", record.config_text},
                     {"plans", json_of(record.plans)["plans"]},
                     {"frontier", json_of(record.plans)["frontier"]},
                     {"measurements", json_of(record.evaluation)["measurements"]},
                     {"stages", stages_of(record)},
                     {"gates", gates_of(record)},
                     {"losses", losses_of(record)}};
  std::string page(report_template());
  constexpr std::string_view kPlace = "@RUN@";
  page.replace(page.find(kPlace), kPlace.size(), embeddable(data));
  return page;
}

std::filesystem::path write_report(const std::filesystem::path& run_folder) {
  const std::filesystem::path file = run_folder / "report.html";
  write_file_atomically(file, report_page(RunRecord::open(run_folder)));
  return file;
}

CommandWork report_command(CLI::App& app) {
  auto folder = std::make_shared<std::string>();
  app.add_option("run", *folder, "a run's folder, e.g. runs/quickstart")->required();
  return [folder] {
    fmt::print("{}\n", write_report(*folder).string());
    return 0;
  };
}

}  // namespace flashmorph
