#include "core/mixer/linear_branch.h"

#include <ATen/ATen.h>

#include <map>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/mixer/initial.h"

namespace flashmorph {
namespace {

std::map<std::string, MixerKind>& known_kinds() {
  static std::map<std::string, MixerKind> known;
  return known;
}

std::vector<std::string> kinds_that_start_from_data() {
  std::vector<std::string> names;
  for (const auto& [name, kind] : known_kinds())
    if (kind.starts_from_data) names.push_back(name);
  return names;
}

}  // namespace

int64_t state_bytes(const MixerSection&, const ModelSpec& model, int64_t) {
  constexpr int64_t kFloat = 4;
  return model.heads * model.head_dim * model.head_dim * kFloat;
}

bool add_mixer_kind(const std::string& kind, const MixerKind& facts) {
  return known_kinds().emplace(kind, facts).second;
}

const MixerKind& mixer_kind(const MixerSection& mixer) {
  const auto found = known_kinds().find(mixer.kind);
  if (found == known_kinds().end())
    throw BadInput("mixer.kind", fmt::format("is '{}', expected one of: {}", mixer.kind, listed(branch_kinds())));
  return found->second;
}

std::vector<std::string> branch_kinds() { return kinds_of("mixer"); }

void check_mixer(const MixerSection& mixer) {
  const MixerKind& kind = mixer_kind(mixer);
  mixer.own.check_only({mixer.kind}, "mixer");
  if (mixer.init == "data" && !kind.starts_from_data)
    throw BadInput("mixer.init", fmt::format("is 'data', but {} has no decays to start from it; these have: {}",
                                             mixer.kind, listed(kinds_that_start_from_data())));
}

std::unique_ptr<LinearBranch> make_branch(const BranchContext& context, const AttentionWeights& teacher) {
  check_mixer(context.mixer);
  return mixer_kind(context.mixer).make(context, teacher);
}

std::unique_ptr<LinearBranch> make_blank_branch(const BranchContext& context) {
  const ModelFiles none = ModelFiles::of("", std::map<std::string, MadeTensor>{});
  Placement shapes = context.placement;
  shapes.device = at::kMeta;
  AttentionWeights blank = load_attention(none, context.spec, context.layer, shapes);
  for (at::Tensor* weight : every_weight(blank))
    if (weight->defined()) *weight = at::zeros(weight->sizes(), weight->options().device(context.placement.device));
  return make_branch(context, blank);
}

}  // namespace flashmorph
