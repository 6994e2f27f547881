#include "core/config/run_config.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "core/config/checks.h"
#include "core/config/reader.h"
#include "core/config/writer.h"

namespace flashmorph {

int64_t BudgetSection::full_layers_of(int64_t model_layers) const {
  int64_t keep = full_layers;
  if (!ratio.empty()) {
    const auto parts = schema::ratio_of(ratio);
    if (!parts) throw BadInput("budget.ratio", "is '" + ratio + "', expected linear:full layers, for example 3:1");
    keep = model_layers * parts->full / (parts->linear + parts->full);
  }
  if (keep < 1 || keep >= model_layers)
    throw BadInput(ratio.empty() ? "budget.full_layers" : "budget.ratio",
                   "keeps full attention in " + std::to_string(keep) + " layers, expected 1 to " +
                       std::to_string(model_layers - 1) + " for a model of " + std::to_string(model_layers) +
                       " layers");
  return keep;
}

int64_t TrainingSection::steps() const { return (tokens + batch_tokens - 1) / batch_tokens; }
int64_t TrainingSection::longest() const { return std::ranges::max(data.lengths); }
int64_t TrainingSection::micro_batch() const { return micro_batch_tokens == 0 ? longest() : micro_batch_tokens; }

std::array<std::pair<const char*, const TrainingSection*>, 4> StagesSection::training() const {
  return {{{"align", &align}, {"select", &select}, {"distill", &distill}, {"finetune", &finetune}}};
}

const TrainingSection* StagesSection::training(const std::string& stage) const {
  for (const auto& [name, section] : training())
    if (name == stage) return section;
  return nullptr;
}

std::array<ParallelSection*, 5> StagesSection::parallels() {
  return {&align.parallel, &select.parallel, &distill.parallel, &finetune.parallel, &evaluate.parallel};
}

RunConfig RunConfig::from_yaml(const std::string& text, const std::string& file_name,
                               const std::vector<std::string>& set) {
  schema::YamlInput input(text, file_name, set);
  RunConfig config;
  schema::Reader(input).read(config);
  input.reject_unknown_overrides();
  schema::check(config, input);
  if (!input.faults.empty()) throw BadInput(input.faults);
  return config;
}

RunConfig RunConfig::from_file(const std::filesystem::path& file, const std::vector<std::string>& set) {
  std::ifstream in(file);
  if (!in || std::filesystem::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  std::stringstream text;
  text << in.rdbuf();
  return from_yaml(text.str(), file.string(), set);
}

std::string RunConfig::to_yaml() const {
  schema::Writer writer;
  RunConfig(*this).keys(writer);
  return writer.text();
}

std::string yaml_reference() {
  schema::Reference reference;
  RunConfig().keys(reference);
  return reference.text();
}

}  // namespace flashmorph
