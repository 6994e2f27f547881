#include "core/ops/linear_attention.h"

#include <ATen/ATen.h>

#include <tuple>
#include <vector>

#include "core/ops/documents.h"
#include "core/ops/operator.h"

// Declares the operators and checks their arguments, for every device; *_cpu.cpp computes. X_backward returns the
// gradients of q, k, v (and the trained decays) and, last, of the initial state.

namespace flashmorph {
namespace {

using Tensor = at::Tensor;
using Optional = OptionalTensor;

void check_inputs(const char* name, const Tensor& q, const Tensor& k, const Tensor& v, const Optional& initial,
                  const Optional& documents, int64_t chunk) {
  TORCH_CHECK(q.dim() == 4 && k.sizes() == q.sizes(), name, ": q and k must be [B, T, H, K]");
  TORCH_CHECK(v.dim() == 4 && v.sizes().slice(0, 3) == q.sizes().slice(0, 3), name, ": v must be [B, T, H, V]");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), name,
              ": q, k and v must have one dtype");
  TORCH_CHECK(q.size(1) >= 1 && chunk >= 1, name, ": chunk and tokens must be at least 1");
  const int64_t sequences = documents ? check_documents(name, *documents, q.size(0), q.size(1)) : q.size(0);
  TORCH_CHECK(!initial || initial->sizes().equals({sequences, q.size(2), q.size(3), v.size(3)}), name,
              ": the initial state must be [", sequences, ", H, K, V]");
}

// Decay: the tensors after q, k and v, which say how the state fades and is written.
template <class... Decay>
struct Recurrence : Operator {
  using Forward = std::tuple<Tensor, Tensor>(const Tensor& q, const Tensor& k, const Tensor& v, const Decay&...,
                                             const Optional& initial, const Optional& documents, double scale,
                                             int64_t chunk);
  using Backward = std::vector<Tensor>(const Tensor& d_output, const Optional& d_final, const Tensor& q,
                                       const Tensor& k, const Tensor& v, const Decay&..., const Optional& initial,
                                       const Optional& documents, double scale, int64_t chunk);
  static constexpr size_t kOutputs = 2, kOutputLike = 2;
};

struct Lightning : Recurrence<Tensor> {
  static constexpr const char* kName = "lightning_attention";
  static constexpr std::array<size_t, 4> kTrained = {0, 1, 2, 4};
  static void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay_H,
                    const Optional& initial, const Optional& documents, double, int64_t chunk) {
    check_inputs(kName, q, k, v, initial, documents, chunk);
    TORCH_CHECK(log_decay_H.dim() == 1 && log_decay_H.size(0) == q.size(2), kName, ": log_decay must be [H]");
  }
};

struct ScalarGated : Recurrence<Tensor> {
  static constexpr const char* kName = "scalar_gated_attention";
  static constexpr std::array<size_t, 5> kTrained = {0, 1, 2, 3, 4};
  static void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTH, const Optional& initial,
                    const Optional& documents, double, int64_t chunk) {
    check_inputs(kName, q, k, v, initial, documents, chunk);
    TORCH_CHECK(g_BTH.sizes() == q.sizes().slice(0, 3), kName, ": g must be [B, T, H]");
  }
};

struct GatedLinear : Recurrence<Tensor> {
  static constexpr const char* kName = "gated_linear_attention";
  static constexpr std::array<size_t, 5> kTrained = {0, 1, 2, 3, 4};
  static void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTHK, const Optional& initial,
                    const Optional& documents, double, int64_t chunk) {
    check_inputs(kName, q, k, v, initial, documents, chunk);
    TORCH_CHECK(g_BTHK.sizes() == q.sizes(), kName, ": g must be [B, T, H, K], as q is");
  }
};

struct GatedDelta : Recurrence<Tensor, Tensor> {
  static constexpr const char* kName = "gated_delta_rule";
  static constexpr std::array<size_t, 6> kTrained = {0, 1, 2, 3, 4, 5};
  static void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTH, const Tensor& beta_BTH,
                    const Optional& initial, const Optional& documents, double, int64_t chunk) {
    check_inputs(kName, q, k, v, initial, documents, chunk);
    for (const Tensor* gate : {&g_BTH, &beta_BTH})
      TORCH_CHECK(gate->sizes() == q.sizes().slice(0, 3), kName, ": g and beta must be [B, T, H]");
  }
};

template <class Op>
void declare_recurrence(torch::Library& library, const std::string& inputs) {
  const std::string rest = inputs + ", Tensor? initial_state, Tensor? documents, float scale, int chunk)";
  declare<Op>(library, "(" + rest + " -> (Tensor output, Tensor final_state)",
              "(Tensor d_output, Tensor? d_final_state, " + rest + " -> Tensor[]");
}

}  // namespace

TORCH_LIBRARY(flashmorph, library) {
  declare_recurrence<Lightning>(library, "Tensor q, Tensor k, Tensor v, Tensor log_decay");
  declare_recurrence<ScalarGated>(library, "Tensor q, Tensor k, Tensor v, Tensor g");
  declare_recurrence<GatedLinear>(library, "Tensor q, Tensor k, Tensor v, Tensor g");
  declare_recurrence<GatedDelta>(library, "Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta");
}

LinearAttentionResult lightning_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay_H,
                                          const Optional& initial_state, const Optional& documents, double scale,
                                          int64_t chunk) {
  const auto [output, state] = call<Lightning>(q, k, v, log_decay_H, initial_state, documents, scale, chunk);
  return {output, state};
}

LinearAttentionResult scalar_gated_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTH,
                                             const Optional& initial_state, const Optional& documents, double scale,
                                             int64_t chunk) {
  const auto [output, state] = call<ScalarGated>(q, k, v, g_BTH, initial_state, documents, scale, chunk);
  return {output, state};
}

LinearAttentionResult gated_linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTHK,
                                             const Optional& initial_state, const Optional& documents, double scale,
                                             int64_t chunk) {
  const auto [output, state] = call<GatedLinear>(q, k, v, g_BTHK, initial_state, documents, scale, chunk);
  return {output, state};
}

LinearAttentionResult gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g_BTH,
                                       const Tensor& beta_BTH, const Optional& initial_state, const Optional& documents,
                                       double scale, int64_t chunk) {
  const auto [output, state] = call<GatedDelta>(q, k, v, g_BTH, beta_BTH, initial_state, documents, scale, chunk);
  return {output, state};
}

}  // namespace flashmorph
