#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"
#include "core/select/budget.h"

namespace flashmorph {

// How well a hard mixture does: full attention in some layers, the aligned linear branches in all others.
struct Judgement {
  double error = 0.0;       // of its states against the teacher's, on the answers
  double divergence = 0.0;  // KL of the teacher's next tokens from its own, on the answers
  double recall = 0.0;      // share of right answer words, teacher-forced
  double perplexity = 0.0;  // of the text around them, when that was asked for
};

// Judges a set of full layers, ascending. Collective: every rank asks for the same sets in the same order and gets the
// same judgements. A set costs what lies behind the first layer in which it differs from the set asked for before, so
// what varies one layer goes from the last layer to the first.
using Judge = std::function<Judgement(const std::vector<int64_t>& full_layers)>;

// One layer's full attention for another's, and what a judge said of the set before and after.
struct Exchange {
  int64_t out = 0, in = 0;
  Judgement before, after;
};

// A set that was judged beside others before one of them was polished.
struct Contender {
  std::string method;
  std::vector<int64_t> full_layers;
  Judgement judgement;
};

// What a selector may look at.
struct Evidence {
  const SelectSection& settings;
  const LayerBudget& budget;
  std::vector<double> gates = {};  // of each layer at the end of select; empty when no selector of the run needs them
  double gate_noise = 0.0;         // the gates' own scatter
  Judge judge = {};                // empty when no selector of the run needs it
  Judge judge_closely = {};        // on more samples, for what polish decides on; empty when it takes the judge's word
  Judge judge_with_text = {};      // with the perplexity, for which every token's logits are computed
};

// The layers that keep full attention, ascending, within the budget.
struct Pick {
  std::vector<int64_t> full_layers;
  std::vector<double> scores = {};         // by layer; empty where the rule has none
  double margin = 0.0;                     // how far the sum of kept scores is from the next best choice's
  double noise = 0.0;                      // of the scores
  std::vector<Contender> contenders = {};  // the scores' own pick first
  std::vector<Exchange> exchanges = {};    // that made it from the best of them: polish
};

// The best layers by these scores (best_layers), and their margin.
Pick best_pick(const std::vector<double>& scores, const LayerBudget& budget);

// A way to pick. One file per method implements it and registers itself; its name is then a value of
// stages.select.method and stages.evaluate.compare, and the name of its plan.
class Selector {
 public:
  virtual ~Selector() = default;

  virtual bool needs_gates() const { return false; }  // then the run has its select stage
  virtual bool needs_judge(const SelectSection&) const { return false; }

  // BadInput for settings that cannot be honoured within this budget. Called before the first step, on every rank.
  virtual void check(const SelectSection&, const LayerBudget&) const {}

  virtual Pick pick(const Evidence& evidence) const = 0;
};

const Selector& selector_named(const std::string& method);
std::vector<std::string> selector_names();

// The methods that the run uses: its own first, then those that it is compared with.
std::vector<std::string> methods_of(const StagesSection& stages);

bool trains_gates(const StagesSection& stages);  // whether any of them needs gates
bool asks_a_judge(const StagesSection& stages);  // whether any of them needs a judge

// BadInput for unknown methods, naming the known ones, and for settings of methods that the run does not use (those of
// flashmorph may stay in a YAML whose method --set has changed); the second form also for what a method says of its
// settings.
void check_methods(const StagesSection& stages);
void check_methods(const StagesSection& stages, const LayerBudget& budget);

// At start-up, with the settings of its own: they are evidence.settings.own.of<Settings>().
bool add_selector(const std::string& method, std::unique_ptr<Selector> selector);
template <class Settings = NoSettings>
bool register_selector(const std::string& method, std::unique_ptr<Selector> selector) {
  return register_kind<Settings>("selector", method) && add_selector(method, std::move(selector));
}

}  // namespace flashmorph
