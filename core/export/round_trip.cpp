#include "core/export/round_trip.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "core/model/blocks.h"
#include "core/ops/projection.h"

namespace flashmorph {

at::Tensor hybrid_logits(const HybridSpec& hybrid, const ModelFiles& own, const at::Tensor& tokens_T,
                         at::ScalarType dtype) {
  const c10::NoGradGuard no_gradient;
  const ModelSpec& spec = hybrid.model;
  const Placement whole{.dtype = dtype};
  const Positions positions = positions_of(spec, 0, tokens_T.size(0), whole);
  Shard alone;

  const EmbeddingWeights embedding = load_embedding(own, spec, whole);
  at::Tensor x = embed(tokens_T.unsqueeze(0), embedding, alone);
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    const BlockWeights block = load_block(own, spec, layer, whole);
    const at::Tensor normed = read_by_sublayer(x, block.input_norm, spec);
    at::Tensor attended;
    if (hybrid.full[static_cast<size_t>(layer)]) {
      attended = full_attention(normed, load_attention(own, spec, layer, whole), spec, positions);
    } else {
      const auto branch = make_blank_branch({spec, hybrid.mixer, layer, /*seed=*/0, whole, alone});
      read_into(branch->parameters(), own, whole);
      attended = branch->forward(normed, positions);
    }
    x = with_sublayer(x, attended, block.input_norm, spec);
    const at::Tensor fed = feed_forward(read_by_sublayer(x, block.post_norm, spec), block, spec);
    x = with_sublayer(x, fed, block.post_norm, spec);
  }
  const HeadWeights head = load_head(own, spec, whole, spec.tied_embeddings ? &embedding : nullptr);
  return project(read_by_head(x, head, spec), head.output).squeeze(0);
}

}  // namespace flashmorph
