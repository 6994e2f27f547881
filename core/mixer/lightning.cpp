#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "core/base/random.h"
#include "core/mixer/decay.h"
#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "core/ops/gated_norm.h"
#include "core/ops/linear_attention.h"
#include "core/ops/norm.h"

// Lightning attention's branch: projections, RMSNorm of queries and keys per head, RoPE, the recurrence with a constant
// decay per head, RMSNorm of the output, a sigmoid gate, the output projection.
// Letters: B batch, T tokens, D hidden, H this rank's heads, K head dim.

namespace flashmorph {
namespace {

struct Weights {
  at::Tensor q, k, v, z;      // [H*K, D]
  at::Tensor o;               // [D, H*K]
  at::Tensor q_norm, k_norm;  // [K]
  at::Tensor o_norm;          // [H*K]
};

// Each kv head's rows, as often as it has query heads, one head after the other.
at::Tensor repeated_heads(const at::Tensor& weight, int64_t head_dim, int64_t times) {
  const at::Tensor heads = weight.unflatten(0, {weight.size(0) / head_dim, head_dim});
  return heads.repeat_interleave(times, 0).flatten(0, 1).contiguous();
}

// Uniform in +-1/sqrt(columns), a pure function of (seed, layer) and the place in the GLOBAL tensor.
at::Tensor uniform_rows(int64_t first, int64_t rows, int64_t columns, int64_t seed, int64_t layer) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(columns));
  at::Tensor values = at::empty({rows, columns}, at::kDouble);
  double* out = values.data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) {
    KeyedRandom random{static_cast<uint64_t>(seed), static_cast<uint64_t>(layer), static_cast<uint64_t>(first + row)};
    for (int64_t column = 0; column < columns; ++column) *out++ = bound * (2.0 * random.unit() - 1.0);
  }
  return values;
}

class LightningBranch : public LinearBranch {
 public:
  LightningBranch(const BranchContext& context, const AttentionWeights& teacher)
      : spec_(context.spec), mixer_(context.mixer), layer_(context.layer), shard_(&context.shard) {
    const auto options = at::TensorOptions(context.placement.dtype).device(context.placement.device);
    const int64_t width = teacher.q.size(0), heads = width / spec_.head_dim;
    const int64_t first_head = context.placement.shard_rank * heads;
    const c10::NoGradGuard no_gradient;
    weights_.q = teacher.q.clone();
    const int64_t groups = width / teacher.k.size(0);  // of this rank; with replicated kv heads fewer than the model's
    weights_.k = repeated_heads(teacher.k, spec_.head_dim, groups);
    weights_.v = repeated_heads(teacher.v, spec_.head_dim, groups);
    weights_.o = teacher.o.clone();
    weights_.z = uniform_rows(first_head * spec_.head_dim, width, spec_.hidden, context.seed, layer_).to(options);
    weights_.q_norm = teacher.q_norm.defined() ? teacher.q_norm.clone() : at::ones({spec_.head_dim}, options);
    weights_.k_norm = teacher.k_norm.defined() ? teacher.k_norm.clone() : at::ones({spec_.head_dim}, options);
    weights_.o_norm = at::ones({width}, options);
    const std::vector<double> decays = log_decays(mixer_.decay, spec_.heads, layer_, spec_.layers);
    log_decay_H_ = at::tensor(decays, at::kDouble).narrow(0, first_head, heads).to(context.placement.device);
  }

  at::Tensor forward(const at::Tensor& x_BTD, const Positions& positions, LayerCache* cache) const override {
    at::Tensor q = rms_norm(project_heads(x_BTD, weights_.q, spec_.head_dim), weights_.q_norm, spec_.norm_epsilon);
    at::Tensor k = rms_norm(project_heads(x_BTD, weights_.k, spec_.head_dim), weights_.k_norm, spec_.norm_epsilon);
    const at::Tensor v = project_heads(x_BTD, weights_.v, spec_.head_dim);
    if (mixer_.rope) {
      q = rotate(q, positions.cos_TK, positions.sin_TK);
      k = rotate(k, positions.cos_TK, positions.sin_TK);
    }
    const bool continues = cache != nullptr && cache->state_BHKV.defined();
    const auto [o_BTHK, state] =
        lightning_attention(q, k, v, log_decay_H_, continues ? std::optional(cache->state_BHKV) : std::nullopt,
                            positions.documents,
                            1.0 / std::sqrt(static_cast<double>(spec_.head_dim)), mixer_.chunk);
    if (cache != nullptr) cache->state_BHKV = state;
    const at::Tensor z = at::linear(x_BTD, weights_.z);
    const at::Tensor gated = mixer_.output_norm == "head"
                                 ? gated_rms_norm(o_BTHK, weights_.o_norm, z, spec_.norm_epsilon, /*swish=*/false)
                                 : normed_over_all(o_BTHK) * at::sigmoid(z);
    return at::linear(gated, weights_.o);
  }

  Parameters parameters() const override {
    const std::string prefix = layer_prefix(layer_) + "linear_attn.";
    return {{prefix + "q_proj.weight", weights_.q, Split::rows},
            {prefix + "k_proj.weight", weights_.k, Split::rows},
            {prefix + "v_proj.weight", weights_.v, Split::rows},
            {prefix + "o_proj.weight", weights_.o, Split::columns},
            {prefix + "z_proj.weight", weights_.z, Split::rows},
            {prefix + "q_norm.weight", weights_.q_norm, Split::none, /*partial_gradient=*/true},
            {prefix + "k_norm.weight", weights_.k_norm, Split::none, /*partial_gradient=*/true},
            {prefix + "o_norm.weight", weights_.o_norm, Split::rows}};
  }

  std::unique_ptr<LinearBranch> clone() const override {
    auto copy = std::unique_ptr<LightningBranch>(new LightningBranch(*this));
    for (at::Tensor* weight :
         {&copy->weights_.q, &copy->weights_.k, &copy->weights_.v, &copy->weights_.o, &copy->weights_.z,
          &copy->weights_.q_norm, &copy->weights_.k_norm, &copy->weights_.o_norm})
      *weight = weight->detach().clone();
    return copy;
  }

 private:
  LightningBranch(const LightningBranch&) = default;

  // RMSNorm over all heads of the model: the sum of squares crosses the shards.
  at::Tensor normed_over_all(const at::Tensor& o_BTHK) const {
    const at::Tensor o_BTC = o_BTHK.flatten(2, 3);
    const auto channels = static_cast<double>(spec_.heads * spec_.head_dim);
    // Every shard's loss depends on the whole sum, so its gradient is summed on the way back as well.
    const at::Tensor squares =
        copy_to_shards(sum_over_shards(o_BTC.square().sum(-1, /*keepdim=*/true), *shard_), *shard_);
    return o_BTC * (squares / channels + spec_.norm_epsilon).rsqrt() * weights_.o_norm;
  }

  ModelSpec spec_;
  MixerSection mixer_;
  int64_t layer_;
  Shard* shard_;
  Weights weights_;
  at::Tensor log_decay_H_;  // this rank's heads, by their global number
};

std::unique_ptr<LinearBranch> make_lightning(const BranchContext& context, const AttentionWeights& teacher) {
  return std::make_unique<LightningBranch>(context, teacher);
}

[[maybe_unused]] const bool registered = register_branch("lightning", make_lightning);

}  // namespace
}  // namespace flashmorph
