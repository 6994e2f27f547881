#include "core/tasks/variables.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace flashmorph {
namespace {

constexpr int kHops = 4;
constexpr int64_t kVariableTokens = 30;

struct Chain {
  std::string value;
  std::vector<std::string> names;
  std::vector<double> places;  // of its assignments in the text, in order
};

Chain drawn_chain(KeyedRandom& random) {
  Chain chain{.value = random_number(5, random), .names = {}, .places = {}};
  std::set<std::string> known;
  while (static_cast<int>(chain.names.size()) <= kHops) {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.below(26));
    if (known.insert(name).second) chain.names.push_back(name);
    chain.places.push_back(random.unit());
  }
  chain.places.resize(chain.names.size());
  std::ranges::sort(chain.places);
  return chain;
}

std::string lines(const Chain& chain, int64_t units) {
  std::string text;
  size_t next = 0;
  for (int64_t unit = 0; unit <= units; ++unit) {
    for (; next < chain.names.size() && (unit == units || chain.places[next] * static_cast<double>(units) < unit + 1.0);
         ++next)
      text += fmt::format("VAR {} = {}\n", chain.names[next], next == 0 ? chain.value : "VAR " + chain.names[next - 1]);
    if (unit < units) text += kNoise;
  }
  return text;
}

std::string question(const Chain& chain) {
  return fmt::format(
      "\nQuestion: Which {0} variables hold the value {1} in the text above?\nAnswer: By the chain of "
      "assignments, the {0} variables that hold the value {1} are:",
      chain.names.size(), chain.value);
}

}  // namespace

TaskSample variable_chain(const Task& task, const TaskMaterial& material, int64_t length, KeyedRandom& random) {
  constexpr const char* kBefore =
      "Follow the chain of assignments that the text below hides, and say which variables hold its value.\n\n";
  constexpr int64_t kExampleUnits = 1;
  const Chain example = drawn_chain(random), chain = drawn_chain(random);
  std::string shown = kBefore + lines(example, kExampleUnits) + question(example);
  for (const std::string& name : example.names) shown += " " + name;
  TaskSample sample{.prompt = {}, .references = chain.names, .most = kVariableTokens};
  sample.prompt = filled(material, task.name, length, sample.most, [&](int64_t units) {
    return shown + "\n\n" + kBefore + lines(chain, units) + question(chain);
  });
  return sample;
}

}  // namespace flashmorph
