#include "distributed/run/run_record.h"

#include <fstream>
#include <map>
#include <sstream>

#include "core/base/bad_input.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/run/run_folder.h"

namespace flashmorph {
namespace {

void read_if_there(const std::filesystem::path& file, google::protobuf::Message& message) {
  if (std::filesystem::exists(file)) read_message(file, message);
}

// A run that is killed, or that writes just now, may leave its last line unfinished: that line is not there yet.
std::vector<nlohmann::json> lines_of(const std::filesystem::path& file) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    nlohmann::json parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object()) lines.push_back(std::move(parsed));
  }
  return lines;
}

}  // namespace

RunRecord RunRecord::outline(const std::filesystem::path& folder) {
  const RunFolder files(folder);
  std::ifstream yaml(files.config_file());
  if (!yaml) throw BadInput(folder.string(), "is not a run's folder: it has no run.yaml");
  std::stringstream text;
  text << yaml.rdbuf();

  RunRecord record;
  record.folder = folder;
  record.config_text = text.str();
  record.config = RunConfig::from_yaml(record.config_text, files.config_file().string());
  read_if_there(files.state_file(), record.state);
  read_if_there(files.plan_file(), record.plans);
  record.layers = record.plans.layers();
  record.events = lines_of(files.events_file());
  return record;
}

RunRecord RunRecord::open(const std::filesystem::path& folder) {
  const RunFolder files(folder);
  RunRecord record = outline(folder);
  read_if_there(files.gates_file(), record.gates);
  read_if_there(files.evaluation_file(), record.evaluation);
  record.steps = lines_of(files.metrics_file());
  return record;
}

bool RunRecord::finished() const { return !events.empty() && events.back().value("event", "") == "finished"; }

std::vector<nlohmann::json> RunRecord::steps_of(const std::string& stage, const std::string& what) const {
  std::map<int64_t, nlohmann::json> by_step;
  for (const nlohmann::json& line : steps) {
    if (line.value("stage", "") != stage || (!what.empty() && line.value("what", "") != what)) continue;
    const auto step = line.value("step", int64_t{0});
    by_step.erase(by_step.lower_bound(step), by_step.end());
    by_step[step] = line;
  }
  std::vector<nlohmann::json> in_order;
  for (auto& [step, line] : by_step) in_order.push_back(std::move(line));
  return in_order;
}

}  // namespace flashmorph
