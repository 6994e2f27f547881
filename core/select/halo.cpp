#include "core/select/halo.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/select/measured_layers.h"

// HALO's pick: the layers whose full attention recall needs more than the rest of the language does. From measurements
// of its own (recall, and the likelihood of plain text where HALO asks commonsense questions), or from a file of such
// scores: {"commonsense": [...], "recall": [...]}, a number a layer, of the model without that layer's full attention.

namespace flashmorph {
namespace {

constexpr double kLargest = 1e9;

std::vector<double> numbers(const nlohmann::json& file, const char* name, const std::string& path, int64_t layers) {
  const nlohmann::json& list = part_of(file, name);
  if (!list.is_array() || static_cast<int64_t>(list.size()) != layers)
    throw BadInput(path, fmt::format("has no list \"{}\" of {} numbers, one a layer", name, layers));
  std::vector<double> values;
  for (const nlohmann::json& value : list) {
    if (!value.is_number() || !(std::abs(value.get<double>()) < kLargest))
      throw BadInput(path, fmt::format("\"{}\" holds {}, expected a number below {:g}", name, value.dump(), kLargest));
    values.push_back(value.get<double>());
  }
  return values;
}

std::vector<double> scores_in(const std::string& path, int64_t layers) {
  const nlohmann::json file = read_json_file(path);
  const std::vector<double> commonsense = numbers(file, "commonsense", path, layers);
  return halo_scores(commonsense, numbers(file, "recall", path, layers));
}

class Halo : public Selector {
 public:
  bool needs_judge(const SelectSection& settings) const override {
    return settings.own.of<HaloSettings>().halo_scores.empty();
  }

  void check(const SelectSection& settings, const LayerBudget& budget) const override {
    if (!settings.own.of<HaloSettings>().halo_scores.empty())
      scores_in(settings.own.of<HaloSettings>().halo_scores, budget.layers());
  }

  Pick pick(const Evidence& evidence) const override {
    const std::string& file = evidence.settings.own.of<HaloSettings>().halo_scores;
    const std::vector<double> scores = file.empty() ? measured(evidence) : scores_in(file, evidence.budget.layers());
    return best_pick(scores, evidence.budget);
  }

 private:
  static std::vector<double> measured(const Evidence& evidence) {
    std::vector<double> likelihood, recall;
    for (const Judgement& one : each_layer_linear(evidence.judge_with_text, evidence.budget.layers())) {
      likelihood.push_back(1.0 / one.perplexity);
      recall.push_back(one.recall);
    }
    return halo_scores(likelihood, recall);
  }
};

[[maybe_unused]] const bool registered = register_selector<HaloSettings>("halo", std::make_unique<Halo>());

}  // namespace
}  // namespace flashmorph
