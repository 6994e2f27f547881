#include "core/select/given.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/select/selector.h"

// Layers that somebody has picked already: a list in the YAML, or the own pick of another run, by its plan.json.

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr const char* kLayers = "stages.select.layers";
constexpr const char* kPlan = "stages.select.plan";

int64_t whole_number(const json& value, const std::string& file) {
  if (value.is_number_integer()) return value.get<int64_t>();
  const std::string text = value.is_string() ? value.get<std::string>() : "";  // protobuf's JSON quotes 64 bits
  if (text.empty() || text.size() > 9 || !std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; }))
    throw BadInput(file, fmt::format("holds {} where a layer's number is expected", value.dump()));
  return std::stoll(text);
}

std::vector<int64_t> own_pick_of(const std::string& file, int64_t model_layers) {
  const json plans = read_json_file(file);
  const json& all = part_of(plans, "plans");
  if (!all.is_array() || all.empty() || !part_of(all[0], "full_layers").is_array())
    throw BadInput(file, "is not the plan.json of a run: it has no plans with full_layers");
  if (const int64_t layers = whole_number(part_of(plans, "layers"), file); layers != model_layers)
    throw BadInput(file, fmt::format("is of a model of {} layers, expected {}", layers, model_layers));
  std::vector<int64_t> kept;
  for (const json& layer : all[0]["full_layers"]) kept.push_back(whole_number(layer, file));
  return kept;
}

class Given : public Selector {
 public:
  void check(const SelectSection& section, const LayerBudget& budget) const override { layers(section, budget); }

  Pick pick(const Evidence& evidence) const override {
    return {.full_layers = layers(evidence.settings, evidence.budget)};
  }

 private:
  static std::vector<int64_t> layers(const SelectSection& section, const LayerBudget& budget) {
    const auto& settings = section.own.of<GivenSettings>();
    if (settings.layers.empty() == settings.plan.empty())
      throw BadInput(kLayers, "the method given needs exactly one of stages.select.layers and stages.select.plan");
    const std::string key = settings.plan.empty() ? kLayers : kPlan;
    std::vector<int64_t> kept = settings.plan.empty() ? settings.layers : own_pick_of(settings.plan, budget.layers());
    std::ranges::sort(kept);
    if (std::ranges::adjacent_find(kept) != kept.end())
      throw BadInput(key, fmt::format("names a layer twice: {}", fmt::join(kept, " ")));
    if (!kept.empty() && (kept.front() < 0 || kept.back() >= budget.layers()))
      throw BadInput(key, fmt::format("names layers {}, expected 0 to {}", fmt::join(kept, " "), budget.layers() - 1));
    if (!budget.allows(kept))
      throw BadInput(key, fmt::format("keeps full attention in layers {}, which {} of {} {} does not allow",
                                      fmt::join(kept, " "), budget.key, budget.limit, budget.unit));
    return kept;
  }
};

[[maybe_unused]] const bool registered = register_selector<GivenSettings>("given", std::make_unique<Given>());

}  // namespace
}  // namespace flashmorph
