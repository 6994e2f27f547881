#include "core/config/run_config.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/config/reader.h"
#include "core/config/writer.h"

namespace flashmorph {
namespace {

// Applies "a.b=value" onto the tree and remembers the path.
void apply_override(YAML::Node& root, const std::string& text, std::set<std::string>& overridden, std::vector<Fault>& faults) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos) {
    faults.push_back({"--set " + text, "expected key=value, for example budget.full_layers=4"});
    return;
  }
  const std::string path = text.substr(0, equals);
  YAML::Node value;
  try {
    value = YAML::Load(text.substr(equals + 1));
  } catch (const YAML::Exception& error) {
    faults.push_back({"--set " + path, error.msg});
    return;
  }
  YAML::Node node = root;
  std::istringstream parts(path);
  std::string part;
  std::vector<std::string> keys;
  while (std::getline(parts, part, '.')) keys.push_back(part);
  for (size_t i = 0; i + 1 < keys.size(); ++i) {
    if (!node[keys[i]].IsDefined() || !node[keys[i]].IsMap()) node[keys[i]] = YAML::Node(YAML::NodeType::Map);
    node.reset(node[keys[i]]);
  }
  node[keys.back()] = value;
  overridden.insert(path);
}

void check_training(const std::string& stage, const TrainingSection& section, std::vector<Fault>& faults) {
  const std::string key = "stages." + stage;
  const int64_t micro = section.micro_batch_tokens;
  if (micro > 0 && section.batch_tokens % micro != 0)
    faults.push_back({key + ".micro_batch_tokens", std::to_string(micro) + " does not divide batch_tokens " + std::to_string(section.batch_tokens)});
  for (const int64_t length : section.data.lengths) {
    if (length > 0 && section.batch_tokens % length != 0)
      faults.push_back({key + ".data.lengths", std::to_string(length) + " does not divide batch_tokens " + std::to_string(section.batch_tokens)});
    if (length > 0 && micro > 0 && micro % length != 0)
      faults.push_back({key + ".data.lengths", std::to_string(length) + " does not divide micro_batch_tokens " + std::to_string(micro)});
  }
  if (micro > 0) return;
  const int64_t longest = *std::max_element(section.data.lengths.begin(), section.data.lengths.end());
  for (const int64_t length : section.data.lengths)
    if (length > 0 && longest % length != 0)
      faults.push_back({key + ".data.lengths", std::to_string(length) + " does not divide " + std::to_string(longest) +
                                                   ", the longest, which is also a micro-batch's tokens; set micro_batch_tokens"});
}

void check(const RunConfig& config, std::vector<Fault>& faults) {
  const std::string& name = config.run.name;
  if (name.find('/') != std::string::npos || name == "." || name == "..")
    faults.push_back({"run.name", "is '" + name + "', expected a plain folder name"});
  if ((config.budget.full_layers > 0) == !config.budget.ratio.empty())
    faults.push_back({"budget", "needs exactly one of full_layers (at least 1) and ratio"});
  check_training("align", config.stages.align, faults);
  check_training("select", config.stages.select, faults);
  check_training("distill", config.stages.distill, faults);
  check_training("finetune", config.stages.finetune, faults);
  const EvaluateSection& evaluate = config.stages.evaluate;
  if (evaluate.greedy_samples > evaluate.samples)
    faults.push_back({"stages.evaluate.greedy_samples", "is " + std::to_string(evaluate.greedy_samples) + ", expected at most samples, " + std::to_string(evaluate.samples)});
  if (evaluate.perplexity_length > evaluate.perplexity_tokens)
    faults.push_back({"stages.evaluate.perplexity_length", "is " + std::to_string(evaluate.perplexity_length) + ", expected at most perplexity_tokens, " + std::to_string(evaluate.perplexity_tokens)});
}

}  // namespace

int64_t BudgetSection::full_layers_of(int64_t model_layers) const {
  int64_t keep = full_layers;
  if (!ratio.empty()) {
    char* end = nullptr;
    const int64_t linear = std::strtoll(ratio.c_str(), &end, 10);
    const int64_t full = *end == ':' ? std::strtoll(end + 1, &end, 10) : 0;
    if (*end != '\0' || linear < 1 || full < 1 || linear > 1000 || full > 1000)
      throw BadInput("budget.ratio", "is '" + ratio + "', expected linear:full layers, for example 3:1");
    keep = model_layers * full / (linear + full);
  }
  if (keep < 1 || keep >= model_layers)
    throw BadInput(ratio.empty() ? "budget.full_layers" : "budget.ratio",
                   "keeps full attention in " + std::to_string(keep) + " layers, expected 1 to " +
                       std::to_string(model_layers - 1) + " for a model of " + std::to_string(model_layers) + " layers");
  return keep;
}

RunConfig RunConfig::from_yaml(const std::string& text, const std::string& file_name, const std::vector<std::string>& set) {
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw BadInput(file_name + " (line " + std::to_string(error.mark.line + 1) + ")", "is not YAML: " + error.msg);
  }
  if (!root.IsMap()) throw BadInput(file_name, "is not a map of keys; docs/yaml.md lists them");

  std::vector<Fault> faults;
  std::set<std::string> overridden;
  for (const std::string& entry : set) apply_override(root, entry, overridden, faults);
  RunConfig config;
  schema::Reader reader(root, "", overridden, faults);
  schema::visit(reader, config);
  reader.reject_unknown();
  if (faults.empty()) check(config, faults);
  if (!faults.empty()) throw BadInput(faults);
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
  RunConfig copy = *this;
  schema::visit(writer, copy);
  return writer.text();
}

std::string yaml_reference() {
  schema::Reference reference;
  RunConfig defaults;
  schema::visit(reference, defaults);
  return reference.text();
}

}  // namespace flashmorph
