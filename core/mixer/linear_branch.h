#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
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
  // asks; only kinds that say starts_from_data.
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

// One whose weights are read right after: started from an attention of zeros.
std::unique_ptr<LinearBranch> make_blank_branch(const BranchContext& context);

std::vector<std::string> branch_kinds();

// BadInput for an unknown kind (naming the known ones) and for settings that the kind cannot honour.
void check_mixer(const MixerSection& mixer);

// A state a head in float32, as most mixers have it.
int64_t state_bytes(const MixerSection& mixer, const ModelSpec& model, int64_t element);

// What is known of a kind beside its branch.
struct MixerKind {
  std::unique_ptr<LinearBranch> (*make)(const BranchContext&, const AttentionWeights&);
  bool starts_from_data = false;  // has decays that mixer.init: data can start
  // For the export that brings its own code: the mixer's Python, appended to modeling_flashmorph.py; what that has to
  // know besides the settings. Without Python it cannot be exported so.
  std::string_view (*python)() = nullptr;
  nlohmann::ordered_json (*facts)(const MixerSection&, const ModelSpec&) = nullptr;
  // What a layer remembers of one sequence, however long, in bytes; `element` is the size of an activation.
  int64_t (*cache_bytes)(const MixerSection&, const ModelSpec&, int64_t element) = state_bytes;
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
