#include "core/mixer/linear_branch.h"

#include <map>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

struct Kind {
  BranchFactory make;
  MixerCheck check;
};

std::map<std::string, Kind>& kinds() {
  static std::map<std::string, Kind> known;
  return known;
}

const Kind& kind_named(const std::string& name) {
  const auto found = kinds().find(name);
  if (found != kinds().end()) return found->second;
  std::string known;
  for (const std::string& kind : branch_kinds()) known += (known.empty() ? "" : ", ") + kind;
  throw BadInput("mixer.kind", "is '" + name + "', expected one of: " + known);
}

}  // namespace

bool register_branch(const std::string& kind, BranchFactory factory, MixerCheck check) {
  return kinds().emplace(kind, Kind{factory, check}).second;
}

std::vector<std::string> branch_kinds() {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kinds()) names.push_back(name);
  return names;
}

void check_mixer(const MixerSection& mixer) { kind_named(mixer.kind).check(mixer); }

std::unique_ptr<LinearBranch> make_branch(const BranchContext& context, const AttentionWeights& teacher) {
  check_mixer(context.mixer);
  return kind_named(context.mixer.kind).make(context, teacher);
}

void refuse_settings_of_lightning(const MixerSection& mixer) {
  const MixerSection usual;
  if (mixer.decay != usual.decay)
    throw BadInput("mixer.decay", "is '" + mixer.decay + "', but " + mixer.kind + " learns its decays: leave it out");
  if (mixer.output_norm != "head")
    throw BadInput("mixer.output_norm", "is '" + mixer.output_norm + "', but " + mixer.kind + " normalises each head");
}

}  // namespace flashmorph
