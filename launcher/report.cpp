#include "launcher/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <memory>

#include "core/io/atomic_file.h"
#include "launcher/commands.h"
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

json gates_of(const RunRecord& record) {
  json history = json::array();
  for (const json& line : record.steps_of("select"))
    if (line.contains("gates")) history.push_back({{"step", line["step"]}, {"alpha", line["gates"]}});
  return history;
}

// By stage, a hybrid's by its plan's name as well: [tokens, loss] of each step.
json losses_of(const RunRecord& record) {
  json losses = json::object();
  const auto add = [&](const std::string& title, const std::vector<json>& steps) {
    for (const json& line : steps)
      if (line.contains("loss")) losses[title].push_back({line.value("tokens", int64_t{0}), line["loss"]});
  };
  add("align", record.steps_of("align"));
  add("select", record.steps_of("select"));
  for (const char* stage : {"distill", "finetune"})
    for (const proto::HybridPlan& plan : record.plans.plans())
      add(std::string(stage) + " " + plan.name(), record.steps_of(stage, plan.name()));
  return losses;
}

// Inside <script> only "</" could end the JSON early.
std::string embeddable(const json& data) {
  std::string text = data.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  for (size_t at = text.find("</"); at != std::string::npos; at = text.find("</", at)) text.replace(at, 2, "<\\/");
  return text;
}

std::string utc_now() { return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(std::time(nullptr))); }

}  // namespace

std::string report_page(const RunRecord& record) {
  const json data = {{"name", record.config.run.name},
                     {"model", record.config.model.path},
                     {"mixer", record.config.mixer.kind},
                     {"finished", record.finished()},
                     {"written", utc_now()},
                     {"version", FLASHMORPH_VERSION},
                     {"seed", record.config.run.seed},
                     {"source_hash", record.state.source_hash()},
                     {"layers", record.layers},
                     {"config", record.config_text},
                     {"plans", json_of(record.plans)["plans"]},
                     {"measurements", json_of(record.evaluation)["measurements"]},
                     {"stages", json_of(record.state)["finished"]},
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
