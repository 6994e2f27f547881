#include "core/ops/softmax_attention.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <vector>

#include "core/ops/documents.h"
#include "core/ops/tiled_attention.h"

namespace flashmorph {
namespace {

double scale_of(const at::Tensor& q) { return 1.0 / std::sqrt(static_cast<double>(q.size(-1))); }

// Whether the kernels let several query heads read one of keys and values. The others find it repeated in memory.
bool grouped_by_kernel(const at::Tensor& q, bool masked) {
  return !q.is_cuda() || (q.scalar_type() == at::kBFloat16 && !masked);
}

at::Tensor repeated_heads(const at::Tensor& x_BPGK, const at::Tensor& q_BTHK) {
  const int64_t repeats = q_BTHK.size(2) / x_BPGK.size(2);
  return repeats == 1 ? x_BPGK : x_BPGK.repeat_interleave(repeats, 2);
}

// Query i is token past + i and sees the tokens up to it.
at::Tensor mask_after(int64_t past, int64_t tokens, const at::Tensor& like) {
  return at::ones({tokens, past + tokens}, like.options().dtype(at::kBool).requires_grad(false)).tril(past);
}

at::Tensor by_sdpa(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                   const std::optional<at::Tensor>& mask, bool is_causal) {
  const bool grouped = k_BPGK.size(2) < q_BTHK.size(2) && grouped_by_kernel(q_BTHK, mask.has_value());
  const auto for_kernel = [&](const at::Tensor& x) {
    return (grouped ? x : repeated_heads(x, q_BTHK)).transpose(1, 2);
  };
  return at::scaled_dot_product_attention(q_BTHK.transpose(1, 2), for_kernel(k_BPGK), for_kernel(v_BPGK), mask,
                                          /*dropout_p=*/0.0, is_causal, scale_of(q_BTHK), /*enable_gqa=*/grouped)
      .transpose(1, 2);
}

// Flash attention's causal mask ends at the last key of the last query, and its one query is shared out by the keys.
at::Tensor by_flash_after(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK) {
  return std::get<0>(at::_flash_attention_forward(
      q_BTHK, k_BPGK, v_BPGK, /*cum_seq_q=*/std::nullopt, /*cum_seq_k=*/std::nullopt, q_BTHK.size(1), k_BPGK.size(1),
      /*dropout_p=*/0.0, /*is_causal=*/q_BTHK.size(1) > 1, /*return_debug_mask=*/false, scale_of(q_BTHK)));
}

// Queries behind keys that were there before, in blocks, so that no mask is large.
at::Tensor after_cached(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK) {
  constexpr int64_t kBlock = 512;
  const int64_t tokens = q_BTHK.size(1), past = k_BPGK.size(1) - tokens;
  std::vector<at::Tensor> blocks;
  for (int64_t first = 0; first < tokens; first += kBlock) {
    const int64_t count = std::min(kBlock, tokens - first), seen = past + first + count;
    blocks.push_back(by_sdpa(q_BTHK.narrow(1, first, count), k_BPGK.narrow(1, 0, seen), v_BPGK.narrow(1, 0, seen),
                             mask_after(past + first, count, q_BTHK), /*is_causal=*/false));
  }
  return blocks.size() == 1 ? blocks[0] : at::cat(blocks, 1);
}

bool flash_takes(const at::Tensor& q) {
  return q.is_cuda() && q.scalar_type() == at::kBFloat16 && q.size(-1) % 8 == 0 && q.size(-1) <= 256;
}

at::Tensor of_rows(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK) {
  const int64_t tokens = q_BTHK.size(1), past = k_BPGK.size(1) - tokens;
  if (past == 0) return by_sdpa(q_BTHK, k_BPGK, v_BPGK, std::nullopt, /*is_causal=*/tokens > 1);
  if (flash_takes(q_BTHK) && !c10::GradMode::is_enabled()) return by_flash_after(q_BTHK, k_BPGK, v_BPGK);
  return tokens == 1 ? by_sdpa(q_BTHK, k_BPGK, v_BPGK, std::nullopt, /*is_causal=*/false)
                     : after_cached(q_BTHK, k_BPGK, v_BPGK);
}

// Documents whose padded lengths are equal attend in one call.
struct Buckets {
  std::map<int64_t, std::vector<int64_t>> documents_of_length;
  at::Tensor token_P;  // in the buckets' order: which token of the row stands there; a document's last one fills it up
  at::Tensor place_T;  // where each token of the row stands

  explicit Buckets(const at::Tensor& documents_S1) {
    const int64_t *offset = documents_S1.const_data_ptr<int64_t>(), documents = documents_S1.size(0) - 1;
    for (int64_t d = 0; d < documents; ++d) documents_of_length[padded(offset[d + 1] - offset[d])].push_back(d);
    place_T = at::empty({offset[documents]}, at::kLong);
    std::vector<int64_t> tokens;
    for (const auto& [length, members] : documents_of_length)
      for (const int64_t d : members)
        for (int64_t i = 0; i < length; ++i) {
          const int64_t token = std::min(offset[d] + i, offset[d + 1] - 1);
          if (token == offset[d] + i) place_T.data_ptr<int64_t>()[token] = static_cast<int64_t>(tokens.size());
          tokens.push_back(token);
        }
    token_P = at::tensor(tokens, at::kLong);
  }

  // At most four lengths an octave: few calls, and a quarter of filling at most.
  static int64_t padded(int64_t length) {
    const int64_t step = std::max<int64_t>(static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(length))) / 4, 1);
    return (length + step - 1) / step * step;
  }
};

// What fills a document up comes after its tokens, so that none of them sees it.
at::Tensor in_buckets(const at::Tensor& q_1THK, const at::Tensor& k_1TGK, const at::Tensor& v_1TGK,
                      const at::Tensor& documents_S1) {
  const Buckets buckets(documents_S1);
  const at::Tensor token_P = buckets.token_P.to(q_1THK.device());
  const at::Tensor q = q_1THK.index_select(1, token_P), k = k_1TGK.index_select(1, token_P),
                   v = v_1TGK.index_select(1, token_P);
  std::vector<at::Tensor> outputs;
  int64_t first = 0;
  for (const auto& [length, members] : buckets.documents_of_length) {
    const auto count = static_cast<int64_t>(members.size());
    const auto own = [&](const at::Tensor& x) {
      return x.narrow(1, first, count * length).view({count, length, x.size(2), x.size(3)});
    };
    outputs.push_back(of_rows(own(q), own(k), own(v)).reshape({1, count * length, q.size(2), v.size(3)}));
    first += count * length;
  }
  return at::cat(outputs, 1).index_select(1, buckets.place_T.to(q_1THK.device()));
}

// One call of the kernels that take offsets. They plan nothing for a length.
at::Tensor by_flash(const at::Tensor& q_1THK, const at::Tensor& k_1TGK, const at::Tensor& v_1TGK,
                    const at::Tensor& on_device_S1, int64_t longest) {
  return std::get<0>(at::_flash_attention_forward(q_1THK.squeeze(0), k_1TGK.squeeze(0), v_1TGK.squeeze(0), on_device_S1,
                                                  on_device_S1, longest, longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                  /*return_debug_mask=*/false, scale_of(q_1THK)))
      .unsqueeze(0);
}

at::Tensor by_efficient(const at::Tensor& q_1THK, const at::Tensor& k_1TGK, const at::Tensor& v_1TGK,
                        const at::Tensor& on_device_S1, int64_t longest) {
  constexpr int64_t kCausal = 1;
  const at::Tensor k = repeated_heads(k_1TGK, q_1THK), v = repeated_heads(v_1TGK, q_1THK);
  const bool trained =
      c10::GradMode::is_enabled() && (q_1THK.requires_grad() || k.requires_grad() || v.requires_grad());
  return std::get<0>(at::_efficient_attention_forward(q_1THK, k, v, /*bias=*/std::nullopt, on_device_S1, on_device_S1,
                                                      longest, longest, /*dropout_p=*/0.0, kCausal,
                                                      /*compute_log_sumexp=*/trained, scale_of(q_1THK)));
}

bool efficient_takes(const at::Tensor& q) {
  return q.is_cuda() && q.scalar_type() == at::kFloat && q.size(-1) % 4 == 0;
}

at::Tensor of_documents(const at::Tensor& q_1THK, const at::Tensor& k_1TGK, const at::Tensor& v_1TGK,
                        const at::Tensor& documents_S1, const at::Tensor& on_device_S1) {
  const int64_t *offset = documents_S1.const_data_ptr<int64_t>(), documents = documents_S1.size(0) - 1;
  int64_t shortest = q_1THK.size(1), longest = 0;
  for (int64_t d = 0; d < documents; ++d) {
    shortest = std::min(shortest, offset[d + 1] - offset[d]);
    longest = std::max(longest, offset[d + 1] - offset[d]);
  }
  if (shortest == longest) {  // rows of a batch, after all
    const auto rows = [&](const at::Tensor& x) { return x.squeeze(0).unflatten(0, {documents, longest}); };
    return of_rows(rows(q_1THK), rows(k_1TGK), rows(v_1TGK)).reshape(q_1THK.sizes());
  }
  if (flash_takes(q_1THK)) return by_flash(q_1THK, k_1TGK, v_1TGK, on_device_S1, longest);
  if (efficient_takes(q_1THK)) return by_efficient(q_1THK, k_1TGK, v_1TGK, on_device_S1, longest);
  return in_buckets(q_1THK, k_1TGK, v_1TGK, documents_S1);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("softmax_attention(Tensor q, Tensor k, Tensor v, Tensor? documents, Tensor? on_device) -> Tensor",
              softmax_attention);
}

at::Tensor softmax_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                             const std::optional<at::Tensor>& documents_S1,
                             const std::optional<at::Tensor>& on_device_S1) {
  TORCH_CHECK(q_BTHK.dim() == 4 && k_BPGK.dim() == 4 && v_BPGK.sizes() == k_BPGK.sizes() &&
                  k_BPGK.size(0) == q_BTHK.size(0) && k_BPGK.size(3) == q_BTHK.size(3) &&
                  q_BTHK.size(2) % k_BPGK.size(2) == 0 && k_BPGK.size(1) >= q_BTHK.size(1),
              "softmax_attention: q must be [B, T, H, K], k and v [B, P, G, K] with P >= T and H a multiple of G");
  const bool by_tiles = tiled_attention_takes(q_BTHK) && k_BPGK.size(1) == q_BTHK.size(1);
  if (!documents_S1)
    return by_tiles ? tiled_attention(q_BTHK, k_BPGK, v_BPGK, std::nullopt) : of_rows(q_BTHK, k_BPGK, v_BPGK);
  TORCH_CHECK(on_device_S1 && on_device_S1->device() == q_BTHK.device() && on_device_S1->scalar_type() == at::kInt,
              "softmax_attention: documents are wanted on q's device too, in int32");
  TORCH_CHECK(k_BPGK.size(1) == q_BTHK.size(1), "softmax_attention: packed documents do not continue others");
  check_documents("softmax_attention", *documents_S1, q_BTHK.size(0), q_BTHK.size(1));
  if (by_tiles) return tiled_attention(q_BTHK, k_BPGK, v_BPGK, documents_S1->contiguous());
  return of_documents(q_BTHK, k_BPGK, v_BPGK, documents_S1->contiguous(), *on_device_S1);
}

at::Tensor next_token_attention(const at::Tensor& q_B1HK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                                const at::Tensor& visible_B, int64_t longest) {
  const int64_t rows = q_B1HK.size(0), room = k_BPGK.size(1);
  TORCH_CHECK(q_B1HK.size(1) == 1 && k_BPGK.size(0) == rows && v_BPGK.sizes() == k_BPGK.sizes() &&
                  visible_B.sizes() == at::IntArrayRef{rows} && longest <= room,
              "next_token_attention: q must be [B, 1, H, K], k and v [B, P, G, K], visible [B] and at most P");
  if (flash_takes(q_B1HK) && k_BPGK.is_contiguous() && v_BPGK.is_contiguous()) {
    const at::Tensor row_B1 = at::arange(rows + 1, visible_B.options());
    return std::get<0>(at::_flash_attention_forward(q_B1HK.squeeze(1), k_BPGK.flatten(0, 1), v_BPGK.flatten(0, 1),
                                                    row_B1, row_B1 * room, /*max_q=*/1, room, /*dropout_p=*/0.0,
                                                    /*is_causal=*/false, /*return_debug_mask=*/false, scale_of(q_B1HK),
                                                    std::nullopt, std::nullopt, /*seqused_k=*/visible_B))
        .unsqueeze(1);
  }
  const at::Tensor mask = at::arange(longest, visible_B.options()).lt(visible_B.view({rows, 1, 1, 1}));
  return by_sdpa(q_B1HK, k_BPGK.narrow(1, 0, longest), v_BPGK.narrow(1, 0, longest), mask, /*is_causal=*/false);
}

}  // namespace flashmorph
