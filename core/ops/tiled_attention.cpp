#include "core/ops/tiled_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/ops/inverse_rms.h"
#include "core/ops/small_products.h"
#include "core/ops/vectorised.h"
#include "core/ops/work.h"

// Scores stand transposed, keys by queries: the softmax then runs down the columns, query beside query, and no product
// needs its large factor turned. Letters: R queries of a tile, C keys of a tile, both kTile; zeros fill the last tile
// up, so that every product has one of few shapes.

namespace flashmorph {
namespace {

constexpr int64_t kTile = 64;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

using Buffer = std::vector<float>;

// e^x for x <= 0 and a little above, to a unit or two in the last place; 0 below the least normal number. 2^n is made
// of its bits, where n is what a large number added to x / ln 2 keeps of it.
FLASHMORPH_INLINED float exp_of(float x) {
  constexpr float kRound = 12582912.0f, kLowest = -87.0f;
  const float bounded = x < kLowest ? kLowest : x;
  const float shifted = bounded * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
  return x < kLowest ? 0.0f : p * power;
}

// What a row of queries has seen of its keys so far.
struct Softmax {
  float largest[kTile];
  float sum[kTile];
};

// Scores become exp(score - largest), the largest and the sums go on, o_KR so far is weighed anew.
FLASHMORPH_VECTORISED void go_on(float* __restrict scores_CR, Softmax& __restrict seen, float* __restrict o_KR,
                                 int64_t K) {
  float largest[kTile], factor[kTile];
  std::copy_n(seen.largest, kTile, largest);
  for (int64_t c = 0; c < kTile; ++c)
    for (int64_t r = 0; r < kTile; ++r)
      largest[r] = scores_CR[c * kTile + r] > largest[r] ? scores_CR[c * kTile + r] : largest[r];
  for (int64_t r = 0; r < kTile; ++r) {
    factor[r] = exp_of(seen.largest[r] - largest[r]);
    seen.largest[r] = largest[r];
    seen.sum[r] *= factor[r];
  }
  for (int64_t c = 0; c < kTile; ++c)
    for (int64_t r = 0; r < kTile; ++r) {
      const float p = exp_of(scores_CR[c * kTile + r] - largest[r]);
      scores_CR[c * kTile + r] = p;
      seen.sum[r] += p;
    }
  for (int64_t k = 0; k < K; ++k)
    for (int64_t r = 0; r < kTile; ++r) o_KR[k * kTile + r] *= factor[r];
}

// p = exp(score - log of the sum);  d_score = p (dp - <dO, o>). p lies where the scores were, d_score where dp was.
FLASHMORPH_VECTORISED void go_back(float* __restrict scores_CR, float* __restrict dp_CR, const float* __restrict lse_R,
                                   const float* __restrict dO_o_R) {
  for (int64_t c = 0; c < kTile; ++c)
    for (int64_t r = 0; r < kTile; ++r) {
      const float p = exp_of(scores_CR[c * kTile + r] - lse_R[r]);
      scores_CR[c * kTile + r] = p;
      dp_CR[c * kTile + r] = p * (dp_CR[c * kTile + r] - dO_o_R[r]);
    }
}

void mask_later_keys(float* scores_CR) {
  for (int64_t c = 0; c < kTile; ++c) std::fill_n(scores_CR + c * kTile, c, kMasked);
}

// One sequence of the batch: tokens [first, first + count) of a row. A row without documents is one.
struct Sequence {
  int64_t row, first, count;
  int64_t tiles() const { return (count + kTile - 1) / kTile; }
};

std::vector<Sequence> sequences_of(const at::Tensor& q_BTHK, const std::optional<at::Tensor>& documents_S1) {
  std::vector<Sequence> all;
  if (documents_S1) {
    const int64_t* offset = documents_S1->const_data_ptr<int64_t>();
    for (int64_t d = 0; d + 1 < documents_S1->size(0); ++d) all.push_back({0, offset[d], offset[d + 1] - offset[d]});
  } else {
    for (int64_t b = 0; b < q_BTHK.size(0); ++b) all.push_back({b, 0, q_BTHK.size(1)});
  }
  return all;
}

// The tokens of one head, x [T, H, K] of one row.
template <class Number>
struct Head {
  Number* first;
  int64_t stride;

  Head(const at::Tensor& x_BTHK, const Sequence& own, int64_t head)
      : first(data_of(x_BTHK) + own.row * x_BTHK.stride(0) + own.first * x_BTHK.stride(1) + head * x_BTHK.stride(2)),
        stride(x_BTHK.stride(1)) {}

  Number* token(int64_t t) const { return first + t * stride; }

 private:
  static Number* data_of(const at::Tensor& x) {
    if constexpr (std::is_const_v<Number>)
      return x.const_data_ptr<float>();
    else
      return x.data_ptr<float>();
  }
};

// A head's tokens tile by tile, each [kTile, K] or, turned, [K, kTile].
struct Tiles {
  Buffer rows, columns;
  int64_t size = 0;  // of a tile

  float* row_tile(int64_t i) { return rows.data() + i * size; }
  float* column_tile(int64_t i) { return columns.data() + i * size; }

  void clear(int64_t tiles, int64_t K) {
    size = kTile * K;
    rows.assign(static_cast<size_t>(tiles * size), 0.0f);
    columns.assign(static_cast<size_t>(tiles * size), 0.0f);
  }

  void load(const Head<const float>& x, const Sequence& own, int64_t K, float factor = 1.0f) {
    clear(own.tiles(), K);
    for (int64_t t = 0; t < own.count; ++t)
      std::transform(x.token(t), x.token(t) + K, rows.data() + t * K,
                     [factor](float number) { return number * factor; });
    for (int64_t i = 0; i < own.tiles(); ++i) transpose(kTile, K, {row_tile(i), K}, column_tile(i));
  }
};

// [kTile, K] of a tile [K, kTile] to a head's tokens, as many as there are.
void store_columns(const float* x_KR, const Head<float>& into, const Sequence& own, int64_t tile, int64_t K,
                   Buffer& turned) {
  turned.resize(static_cast<size_t>(kTile * K));
  transpose(K, kTile, {x_KR, kTile}, turned.data());
  for (int64_t r = 0; r < std::min(kTile, own.count - tile * kTile); ++r)
    std::copy_n(turned.data() + r * K, K, into.token(tile * kTile + r));
}

void store_rows(const Buffer& x, const Head<float>& into, const Sequence& own, int64_t K) {
  for (int64_t t = 0; t < own.count; ++t) std::copy_n(x.data() + t * K, K, into.token(t));
}

// Products of a tile's matrices, which have no gaps.
void tile_product(int64_t N, int64_t M, int64_t P, const float* a, const float* b, float* c, bool add) {
  small_product(N, M, P, {a, M}, {b, P}, {c, P}, add);
}

struct Shape {
  int64_t H, G, K;
  float scale;
  Shape(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK)
      : H(q_BTHK.size(2)),
        G(k_BTGK.size(2)),
        K(q_BTHK.size(3)),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(K)))) {}
  int64_t group() const { return H / G; }
};

// So many products of all pairs.
void tell_pairs(const std::vector<Sequence>& sequences, const Shape& shape, double products) {
  double pairs = 0.0;
  for (const Sequence& one : sequences) pairs += 0.5 * static_cast<double>(one.count * one.count);
  tell_work(products * 2.0 * pairs * static_cast<double>(shape.H * shape.K));
}

// work(sequence, head of keys and values, buffers of the thread)
template <class Buffers, class Work>
void for_each_head(const std::vector<Sequence>& sequences, const Shape& shape, const Work& work) {
  at::parallel_for(0, static_cast<int64_t>(sequences.size()) * shape.G, 1, [&](int64_t begin, int64_t end) {
    Buffers buffers;
    for (int64_t i = begin; i < end; ++i) work(sequences[static_cast<size_t>(i / shape.G)], i % shape.G, buffers);
  });
}

struct ForwardBuffers {
  Tiles q, k, v;
  Buffer scores = Buffer(kTile * kTile), o, turned;
  Softmax seen;
};

// Returns the output and the logarithm of each query's sum, [B, T, H].
std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK, const at::Tensor& v_BTGK,
                                          const std::vector<Sequence>& sequences) {
  const Shape shape(q_BTHK, k_BTGK);
  const int64_t K = shape.K;
  tell_pairs(sequences, shape, 2.0);
  at::Tensor o_BTHK = at::empty(q_BTHK.sizes(), q_BTHK.options()),
             lse_BTH1 = at::empty({q_BTHK.size(0), q_BTHK.size(1), shape.H, 1}, q_BTHK.options());
  for_each_head<ForwardBuffers>(sequences, shape, [&](const Sequence& own, int64_t g, ForwardBuffers& x) {
    x.k.load({k_BTGK, own, g}, own, K);
    x.v.load({v_BTGK, own, g}, own, K);
    x.o.resize(static_cast<size_t>(kTile * K));
    for (int64_t h = g * shape.group(); h < (g + 1) * shape.group(); ++h) {
      x.q.load({q_BTHK, own, h}, own, K, shape.scale);
      for (int64_t i = 0; i < own.tiles(); ++i) {
        std::fill_n(x.seen.largest, kTile, kMasked);
        std::fill_n(x.seen.sum, kTile, 0.0f);
        std::ranges::fill(x.o, 0.0f);
        for (int64_t j = 0; j <= i; ++j) {
          tile_product(kTile, K, kTile, x.k.row_tile(j), x.q.column_tile(i), x.scores.data(), /*add=*/false);
          if (j == i) mask_later_keys(x.scores.data());
          go_on(x.scores.data(), x.seen, x.o.data(), K);
          tile_product(K, kTile, kTile, x.v.column_tile(j), x.scores.data(), x.o.data(), /*add=*/true);
        }
        for (int64_t k = 0; k < K; ++k)
          for (int64_t r = 0; r < kTile; ++r) x.o[k * kTile + r] /= x.seen.sum[r];
        store_columns(x.o.data(), {o_BTHK, own, h}, own, i, K, x.turned);
        const Head<float> lse(lse_BTH1, own, h);
        for (int64_t r = 0; r < std::min(kTile, own.count - i * kTile); ++r)
          *lse.token(i * kTile + r) = x.seen.largest[r] + std::log(x.seen.sum[r]);
      }
    }
  });
  return {o_BTHK, lse_BTH1};
}

struct BackwardBuffers {
  Tiles q, k, v, dO, dq;
  Buffer scores = Buffer(kTile * kTile), dp = Buffer(kTile * kTile), dk, dv, lse, dO_o, turned;
};

// With s = scale q k^T, p = exp(s - lse), dp = dO v^T:  dv = p^T dO,  ds = p (dp - <dO, o>),  dq = scale ds k,
// dk = scale ds^T q. Queries carry the scale.
std::array<at::Tensor, 3> backward(const at::Tensor& dO_BTHK, const at::Tensor& q_BTHK, const at::Tensor& k_BTGK,
                                   const at::Tensor& v_BTGK, const at::Tensor& o_BTHK, const at::Tensor& lse_BTH1,
                                   const std::vector<Sequence>& sequences) {
  const Shape shape(q_BTHK, k_BTGK);
  const int64_t K = shape.K;
  const auto like = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  tell_pairs(sequences, shape, 5.0);
  at::Tensor dq_BTHK = like(q_BTHK), dk_BTGK = like(k_BTGK), dv_BTGK = like(v_BTGK);
  for_each_head<BackwardBuffers>(sequences, shape, [&](const Sequence& own, int64_t g, BackwardBuffers& x) {
    const auto tokens = static_cast<size_t>(own.tiles() * kTile);
    x.k.load({k_BTGK, own, g}, own, K);
    x.v.load({v_BTGK, own, g}, own, K);
    x.dk.assign(tokens * static_cast<size_t>(K), 0.0f);
    x.dv.assign(tokens * static_cast<size_t>(K), 0.0f);
    for (int64_t h = g * shape.group(); h < (g + 1) * shape.group(); ++h) {
      x.q.load({q_BTHK, own, h}, own, K, shape.scale);
      x.dO.load({dO_BTHK, own, h}, own, K);
      x.dq.clear(own.tiles(), K);
      x.lse.assign(tokens, 0.0f);
      x.dO_o.assign(tokens, 0.0f);
      const Head<const float> o(o_BTHK, own, h), lse(lse_BTH1, own, h);
      for (int64_t t = 0; t < own.count; ++t) {
        x.lse[t] = *lse.token(t);
        x.dO_o[t] = dot(x.dO.rows.data() + t * K, o.token(t), K);
      }
      for (int64_t j = 0; j < own.tiles(); ++j)
        for (int64_t i = j; i < own.tiles(); ++i) {
          tile_product(kTile, K, kTile, x.k.row_tile(j), x.q.column_tile(i), x.scores.data(), /*add=*/false);
          tile_product(kTile, K, kTile, x.v.row_tile(j), x.dO.column_tile(i), x.dp.data(), /*add=*/false);
          if (j == i) mask_later_keys(x.scores.data());
          go_back(x.scores.data(), x.dp.data(), x.lse.data() + i * kTile, x.dO_o.data() + i * kTile);
          tile_product(kTile, kTile, K, x.scores.data(), x.dO.row_tile(i), x.dv.data() + j * kTile * K, /*add=*/true);
          tile_product(kTile, kTile, K, x.dp.data(), x.q.row_tile(i), x.dk.data() + j * kTile * K, /*add=*/true);
          tile_product(K, kTile, kTile, x.k.column_tile(j), x.dp.data(), x.dq.column_tile(i), /*add=*/true);
        }
      for (float& number : x.dq.columns) number *= shape.scale;
      for (int64_t i = 0; i < own.tiles(); ++i)
        store_columns(x.dq.column_tile(i), {dq_BTHK, own, h}, own, i, K, x.turned);
    }
    store_rows(x.dk, {dk_BTGK, own, g}, own, K);
    store_rows(x.dv, {dv_BTGK, own, g}, own, K);
  });
  return {dq_BTHK, dk_BTGK, dv_BTGK};
}

at::Tensor with_whole_heads(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

struct TiledAttention : torch::autograd::Function<TiledAttention> {
  using Context = torch::autograd::AutogradContext;

  static at::Tensor forward(Context* context, const at::Tensor& any_q, const at::Tensor& any_k, const at::Tensor& any_v,
                            const std::optional<at::Tensor>& documents_S1) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor q = with_whole_heads(any_q), k = with_whole_heads(any_k), v = with_whole_heads(any_v);
    const auto [o, lse] = flashmorph::forward(q, k, v, sequences_of(q, documents_S1));
    context->save_for_backward({q, k, v, o, lse, documents_S1.value_or(at::Tensor())});
    return o;
  }

  static torch::autograd::variable_list backward(Context* context, const torch::autograd::variable_list& upstream) {
    const auto saved = context->get_saved_variables();
    const auto documents_S1 = saved[5].defined() ? std::optional(saved[5]) : std::nullopt;
    const auto [dq, dk, dv] = flashmorph::backward(with_whole_heads(upstream[0]), saved[0], saved[1], saved[2],
                                                   saved[3], saved[4], sequences_of(saved[0], documents_S1));
    return {dq, dk, dv, at::Tensor()};
  }
};

}  // namespace

bool tiled_attention_takes(const at::Tensor& q_BTHK) {
  return q_BTHK.is_cpu() && q_BTHK.scalar_type() == at::kFloat && q_BTHK.numel() > 0 && has_small_products();
}

at::Tensor tiled_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK, const at::Tensor& v_BTGK,
                           const std::optional<at::Tensor>& documents_S1) {
  return TiledAttention::apply(q_BTHK, k_BTGK, v_BTGK, documents_S1);
}

}  // namespace flashmorph
