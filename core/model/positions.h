#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "core/model/model_spec.h"
#include "core/model/weights.h"

namespace flashmorph {

// Rows that go on after different numbers of cached tokens, one token each.
struct RowStarts {
  at::Tensor row_B;      // 0, 1, ... B - 1
  at::Tensor start_B;    // the tokens before each row's one
  at::Tensor visible_B;  // and with it, in int32
};

// Where the tokens of a forward pass stand; every attention is handed it.
struct Positions {
  // cos and sin of the rotary angles, each [T, head_dim], in the half-split layout (RoPE, arXiv 2104.09864). With
  // `rows`: [B, head_dim], of each row's token.
  at::Tensor cos_TK;
  at::Tensor sin_TK;
  // Offsets of packed documents (linear_attention.h): positions start again in each, and no attention sees another one.
  std::optional<at::Tensor> documents = std::nullopt;
  // What the placement's device needs of them, copied once for all layers: the offsets in int32, and of each token its
  // place in its own document, [T] in int32.
  at::Tensor documents_on_device = {};
  std::optional<at::Tensor> place_T = std::nullopt;
  int64_t start = 0;                             // of the first token; the farthest row's
  std::optional<RowStarts> rows = std::nullopt;  // on the placement's device
};

// The positions [start, start + length), or those of documents packed in `length` tokens (start must be 0 then). Angles
// are computed in float64 and rounded once to the placement's dtype, float32 at least, times the scale of YaRN.
Positions positions_of(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement,
                       const std::optional<at::Tensor>& documents = std::nullopt);

// One token in each row, behind so many.
Positions positions_of_rows(const ModelSpec& spec, const std::vector<int64_t>& starts, const Placement& placement);

}  // namespace flashmorph
