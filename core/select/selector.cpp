#include "core/select/selector.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "core/base/bad_input.h"
#include "core/base/listed.h"

namespace flashmorph {
namespace {

std::map<std::string, std::unique_ptr<Selector>>& selectors() {
  static std::map<std::string, std::unique_ptr<Selector>> known;
  return known;
}

void require_known(const std::string& method, const std::string& key) {
  if (selectors().contains(method)) return;
  throw BadInput(key, fmt::format("is '{}', expected one of: {}", method, listed(selector_names())));
}

}  // namespace

Pick best_pick(const std::vector<double>& scores, const LayerBudget& budget) {
  return {.full_layers = best_layers(scores, budget), .scores = scores, .margin = keep_margin(scores, budget)};
}

bool add_selector(const std::string& method, std::unique_ptr<Selector> selector) {
  return selectors().emplace(method, std::move(selector)).second;
}

const Selector& selector_named(const std::string& method) {
  const auto found = selectors().find(method);
  if (found == selectors().end()) throw std::logic_error("no selector is named " + method);
  return *found->second;
}

std::vector<std::string> selector_names() { return kinds_of("selector"); }

std::vector<std::string> methods_of(const StagesSection& stages) {
  std::vector<std::string> methods = {stages.select.method};
  for (const std::string& other : stages.evaluate.compare)
    if (other != stages.select.method) methods.push_back(other);
  return methods;
}

bool trains_gates(const StagesSection& stages) {
  return std::ranges::any_of(methods_of(stages),
                             [](const std::string& method) { return selector_named(method).needs_gates(); });
}

bool asks_a_judge(const StagesSection& stages) {
  return std::ranges::any_of(
      methods_of(stages), [&](const std::string& method) { return selector_named(method).needs_judge(stages.select); });
}

void check_methods(const StagesSection& stages) {
  require_known(stages.select.method, "stages.select.method");
  for (const std::string& other : stages.evaluate.compare) require_known(other, "stages.evaluate.compare");
  std::vector<std::string> used = methods_of(stages);
  if (std::ranges::count(used, "flashmorph") == 0) used.push_back("flashmorph");
  stages.select.own.check_only(used, "stages.select");
}

void check_methods(const StagesSection& stages, const LayerBudget& budget) {
  check_methods(stages);
  for (const std::string& method : methods_of(stages)) selector_named(method).check(stages.select, budget);
}

}  // namespace flashmorph
