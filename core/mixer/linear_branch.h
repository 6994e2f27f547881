#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/cache.h"
#include "core/model/model_spec.h"
#include "core/model/parameter.h"
#include "core/model/positions.h"
#include "core/model/weights.h"
#include "core/shard/shard.h"

namespace flashmorph {

// The linear-attention branch of one layer, A_lin. One file per kind implements it and registers itself.
class LinearBranch {
 public:
  virtual ~LinearBranch() = default;

  // x_BTD: the layer's input after its norm, whole on every rank. Returns this rank's partial output_BTD; the sum over
  // the tensor group is A_lin(x). With a cache, x continues from the cached state, which moves on.
  virtual at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions,
                             LayerCache* cache = nullptr) const = 0;

  // Its weights under global names, model.layers.{l}.linear_attn.*; what align trains.
  virtual Parameters parameters() const = 0;

  // Starts the decays from the mean distance, in tokens, of each of this rank's heads' attention, as mixer.init: data
  // asks (check_mixer refuses it for kinds that cannot).
  virtual void start_decays(const at::Tensor& distance_H) { TORCH_CHECK(false, "this mixer has no decays to start"); }

  // A deep copy whose weights can be trained apart from this one's.
  virtual std::unique_ptr<LinearBranch> clone() const = 0;
};

// All that a branch may depend on. Heads are numbered globally: a rank holds heads
// [shard.rank() * heads / shard.size(), ...).
struct BranchContext {
  const ModelSpec& spec;
  MixerSection mixer;
  int64_t layer;
  int64_t seed;
  Placement placement;
  Shard& shard;  // outlives the branch
};

// A branch started from the teacher's attention: q and o copied, each kv head of k and v repeated consecutively to its
// query heads, new tensors at their usual initial values (pure functions of seed and layer, whatever the mesh).
// BadInput for an unknown kind, naming the known ones.
std::unique_ptr<LinearBranch> make_branch(const BranchContext& context, const AttentionWeights& teacher);

std::vector<std::string> branch_kinds();

// BadInput for an unknown kind (naming the known ones) and for settings that the kind cannot honour.
void check_mixer(const MixerSection& mixer);

// What is known of a kind beside its branch.
struct MixerKind {
  std::unique_ptr<LinearBranch> (*make)(const BranchContext&, const AttentionWeights&);
  void (*check)(const MixerSection&) = nullptr;  // BadInput for settings of all mixers that it cannot honour
  // What an export's code has to know of it besides its settings.
  nlohmann::ordered_json (*facts)(const MixerSection&, const ModelSpec&) = nullptr;
  int64_t remembered = 0;  // tokens whose queries, keys and values a cache holds beside the state
};
const MixerKind& mixer_kind(const MixerSection& mixer);

// A kind adds itself at start-up, with the settings of its own; see lightning.cpp.
bool add_mixer_kind(const std::string& kind, const MixerKind& facts);
template <class Settings = NoSettings>
bool register_branch(const std::string& kind, const MixerKind& facts) {
  return register_kind<Settings>("mixer", kind) && add_mixer_kind(kind, facts);
}

template <class Branch>
std::unique_ptr<LinearBranch> make(const BranchContext& context, const AttentionWeights& teacher) {
  const c10::NoGradGuard no_gradient;
  return std::make_unique<Branch>(context, teacher);
}

}  // namespace flashmorph
