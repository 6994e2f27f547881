#include "core/rehearsal/work_counter.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstring>
#include <map>
#include <string_view>

namespace flashmorph {
namespace {

using Inputs = c10::ArrayRef<const c10::IValue>;

thread_local WorkCounter* counter = nullptr;
thread_local ScopeWatcher* watcher = nullptr;

double size(const c10::IValue& tensor, int64_t dim) { return static_cast<double>(tensor.toTensor().size(dim)); }
double count(const c10::IValue& tensor) { return static_cast<double>(tensor.toTensor().numel()); }

// a [.., N, M] times b [.., M, P], the first of them the operator's input `at`.
double product(Inputs inputs, size_t at) { return 2.0 * count(inputs[at]) * size(inputs[at + 1], -1); }

// q, k [B, H, T, K] and is_causal at these places; so many products of all pairs.
double attention(Inputs inputs, size_t q, size_t is_causal, double products) {
  const double pairs = count(inputs[q]) * size(inputs[q + 1], -2);
  return products * 2.0 * pairs * (inputs[is_causal].toBool() ? 0.5 : 1.0);
}

using Rule = double (*)(Inputs);

const std::map<std::string_view, Rule>& rules() {
  static const std::map<std::string_view, Rule> known = {
      {"aten::mm", [](Inputs in) { return product(in, 0); }},
      {"aten::_scaled_mm", [](Inputs in) { return product(in, 0); }},
      {"aten::bmm", [](Inputs in) { return product(in, 0); }},
      {"aten::addmm", [](Inputs in) { return product(in, 1); }},
      {"aten::addmm_", [](Inputs in) { return product(in, 1); }},
      {"aten::baddbmm", [](Inputs in) { return product(in, 1); }},
      {"aten::baddbmm_", [](Inputs in) { return product(in, 1); }},
      {"mkldnn::_linear_pointwise", [](Inputs in) { return 2.0 * count(in[0]) * size(in[1], 0); }},
      {"aten::linalg_solve_triangular", [](Inputs in) { return size(in[0], -1) * count(in[1]); }},
      {"flashmorph::work", [](Inputs in) { return in[0].toDouble(); }},
      {"aten::_scaled_dot_product_cudnn_attention", [](Inputs in) { return attention(in, 0, 6, 2.0); }},
      {"aten::_scaled_dot_product_efficient_attention", [](Inputs in) { return attention(in, 0, 6, 2.0); }},
      {"aten::_scaled_dot_product_flash_attention", [](Inputs in) { return attention(in, 0, 4, 2.0); }},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", [](Inputs in) { return attention(in, 0, 4, 2.0); }},
      {"aten::_scaled_dot_product_flash_attention_for_cpu_backward",
       [](Inputs in) { return attention(in, 1, 7, 5.0); }}};
  return known;
}

}  // namespace

double flop_of_call(const at::RecordFunction& call) {
  const auto rule = rules().find(call.name());
  return rule == rules().end() ? 0.0 : rule->second(call.inputs());
}

WorkCounter::WorkCounter() {
  TORCH_CHECK(counter == nullptr, "one WorkCounter a thread");
  counter = this;
  handle_ = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&WorkCounter::started).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
}

WorkCounter::~WorkCounter() {
  at::removeCallback(handle_);
  counter = nullptr;
}

std::unique_ptr<at::ObserverContext> WorkCounter::started(const at::RecordFunction& call) {
  counter->flop_ += flop_of_call(call);
  return nullptr;
}

ScopeWatcher::ScopeWatcher(const char* name, std::function<void()> entered, std::function<void()> left)
    : name_(name), entered_(std::move(entered)), left_(std::move(left)) {
  TORCH_CHECK(watcher == nullptr, "one ScopeWatcher a thread");
  watcher = this;
  handle_ = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&ScopeWatcher::started, &ScopeWatcher::ended).scopes({at::RecordScope::USER_SCOPE}));
}

ScopeWatcher::~ScopeWatcher() {
  at::removeCallback(handle_);
  watcher = nullptr;
}

std::unique_ptr<at::ObserverContext> ScopeWatcher::started(const at::RecordFunction& call) {
  if (std::strcmp(call.name(), watcher->name_) == 0) watcher->entered_();
  return nullptr;
}

void ScopeWatcher::ended(const at::RecordFunction& call, at::ObserverContext*) {
  if (std::strcmp(call.name(), watcher->name_) == 0) watcher->left_();
}

}  // namespace flashmorph
