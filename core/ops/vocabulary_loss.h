#pragma once

#include <ATen/core/Tensor.h>

#include "core/shard/shard.h"

namespace flashmorph {

// The scope that profilers see while logits are in memory.
inline constexpr const char* kVocabularyScope = "flashmorph::vocabulary";

// Losses over a vocabulary whose rows are split over a shard's group, computed in chunks of tokens: a
// [tokens, vocabulary] tensor is never held. Letters: N tokens, D hidden, W this rank's vocabulary rows.
// Both are sums over tokens (the caller divides), in float32 at least, identical on every rank, and differentiable in
// the hidden states and the head weight. Gradients with respect to hidden states are complete on every rank (reduced
// inside).

// sum over tokens of KL(softmax(teacher logits) || softmax(student logits)), logits = hidden * head^T.
// The teacher's two tensors get no gradient.
at::Tensor kl_divergence(const at::Tensor& student_hidden_ND, const at::Tensor& student_head_WD,
                         const at::Tensor& teacher_hidden_ND, const at::Tensor& teacher_head_WD, Shard& shard,
                         int64_t chunk = 2048);

// sum over tokens of -log softmax(hidden * head^T)[target]; targets_N are global ids, this rank holds the rows
// [rank * W, (rank + 1) * W). Targets of -100 count nothing. They may lie on the host, where checking them is cheapest.
at::Tensor cross_entropy(const at::Tensor& hidden_ND, const at::Tensor& head_WD, const at::Tensor& targets_N,
                         Shard& shard, int64_t chunk = 2048);

// The id of the largest logit of each token (the smallest id among equals); no gradient.
at::Tensor greedy_tokens(const at::Tensor& hidden_ND, const at::Tensor& head_WD, Shard& shard, int64_t chunk = 2048);

}  // namespace flashmorph
