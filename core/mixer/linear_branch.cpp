#include "core/mixer/linear_branch.h"

#include <map>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

std::map<std::string, BranchFactory>& factories() {
  static std::map<std::string, BranchFactory> known;
  return known;
}

}  // namespace

bool register_branch(const std::string& kind, BranchFactory factory) {
  return factories().emplace(kind, factory).second;
}

std::vector<std::string> branch_kinds() {
  std::vector<std::string> kinds;
  for (const auto& [kind, factory] : factories()) kinds.push_back(kind);
  return kinds;
}

std::unique_ptr<LinearBranch> make_branch(const BranchContext& context, const AttentionWeights& teacher) {
  const auto found = factories().find(context.mixer.kind);
  if (found == factories().end()) {
    std::string known;
    for (const std::string& kind : branch_kinds()) known += (known.empty() ? "" : ", ") + kind;
    throw BadInput("mixer.kind", "'" + context.mixer.kind + "' is not a known mixer; known: " + known);
  }
  return found->second(context, teacher);
}

}  // namespace flashmorph
