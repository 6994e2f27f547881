#include "core/rehearsal/kernel_counter.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "core/rehearsal/work_counter.h"

namespace flashmorph {
namespace {

using Kind = Kernel::Kind;

// What is known of an operator by its schema and its name.
struct Traits {
  bool starts = false;               // a kernel, unless the operators that it is made of do
  bool fused = false;                // one kernel on a card, whatever it is made of here
  bool gathers = false;              // reads of its first tensor as much as it returns
  bool adds = false;                 // a product to its first argument
  Kind kind = Kind::pointwise;       // of its kernel
  std::vector<bool> reads, changes;  // by argument
};

bool begins_with_any(std::string_view name, std::initializer_list<std::string_view> beginnings) {
  return std::ranges::any_of(beginnings, [&](std::string_view beginning) { return name.starts_with(beginning); });
}

// Operators of core/ops that have kernels of their own on cards, by their names' beginnings.
std::optional<Kind> fused_kind(std::string_view name) {
  static const std::vector<std::pair<std::string_view, Kind>> known = {
      {"flashmorph::lightning_attention", Kind::lightning},
      {"flashmorph::scalar_gated_attention", Kind::scalar_gated},
      {"flashmorph::gated_linear_attention", Kind::gated_linear},
      {"flashmorph::gated_delta_rule", Kind::gated_delta},
      {"flashmorph::rms_norm", Kind::pointwise},
      {"flashmorph::add_and_norm", Kind::pointwise},
      {"flashmorph::gated_rms_norm", Kind::pointwise},
      {"flashmorph::swiglu", Kind::pointwise},
      {"flashmorph::rotate", Kind::pointwise},
      {"flashmorph::norm_and_rotate", Kind::pointwise},
      {"flashmorph::gate_mix", Kind::pointwise},
      {"flashmorph::squared_distance", Kind::pointwise},
      {"flashmorph::short_convolution", Kind::pointwise},
      {"flashmorph::quantise_rows", Kind::pointwise},
      {"flashmorph::softmax_sums", Kind::pointwise},
      {"flashmorph::softmax_gradient", Kind::pointwise},
      {"aten::_foreach_", Kind::pointwise},
      {"aten::_fused_", Kind::pointwise}};
  const auto found = std::ranges::find_if(known, [&](const auto& entry) { return name.starts_with(entry.first); });
  return found == known.end() ? std::nullopt : std::optional(found->second);
}

Traits traits_of(const c10::FunctionSchema& schema) {
  const std::string_view name = schema.name();
  Traits traits;
  bool changes_any = false;
  for (const c10::Argument& argument : schema.arguments()) {
    const bool changes = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    // What is overwritten as a whole is not read.
    const bool overwritten =
        argument.is_out() || (changes && begins_with_any(name, {"aten::copy_", "aten::zero_", "aten::fill_"}));
    traits.reads.push_back(!overwritten);
    traits.changes.push_back(changes);
    changes_any = changes_any || changes;
  }
  const auto is_new = [](const c10::Argument& result) {
    const bool tensors =
        result.type()->isSubtypeOf(*c10::TensorType::get()) || result.type()->isSubtypeOf(*c10::ListType::ofTensors());
    return tensors && result.alias_info() == nullptr;  // a view has one
  };
  const bool makes = changes_any || std::ranges::any_of(schema.returns(), is_new);
  traits.starts = makes && !begins_with_any(name, {"aten::empty", "aten::new_empty", "aten::resize_", "aten::set_",
                                                   "aten::detach", "aten::requires_grad_", "aten::is_", "aten::size",
                                                   "aten::stride", "aten::retain_grad", "aten::_version"});
  traits.adds = begins_with_any(name, {"aten::addmm", "aten::baddbmm"});
  traits.gathers = begins_with_any(name, {"aten::index_select", "aten::embedding", "aten::gather", "aten::index"}) &&
                   !name.ends_with("_backward") && !changes_any;
  if (const auto kind = fused_kind(name)) {
    traits.fused = true;
    traits.kind = *kind;
  } else if (name.find("attention") != std::string_view::npos) {
    traits.kind = Kind::attention;
  }
  return traits;
}

const Traits& traits_of(const at::RecordFunction& call) {
  static thread_local std::map<std::pair<std::string, std::string>, Traits> known;
  const auto name = call.operator_name();
  if (!name) {
    static const Traits none;
    return none;
  }
  const auto [at, is_new] = known.try_emplace({name->name, name->overload_name});
  if (is_new)
    if (const auto schema = call.operator_schema()) at->second = traits_of(*schema);
  return at->second;
}

}  // namespace

struct KernelCounter::Call : at::ObserverContext {
  KernelCounter* counter;
  const Traits* traits;
  Call* outer;
  bool inside_fused;  // of this call or an outer one
  bool started = false, on_meta = false;
  Kernel kernel{Kind::pointwise, at::ScalarType::Undefined, 0.0, 0.0};
  double changed = 0.0;  // bytes

  // Of a tensor, a list of them, or something else.
  double bytes_of(const c10::IValue& value) {
    if (value.isTensor()) return bytes_of(value.toTensor());
    double all = 0.0;
    if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) all += bytes_of(tensor);
    return all;
  }

 private:
  double bytes_of(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_meta()) return 0.0;
    on_meta = true;
    if (kernel.dtype == at::ScalarType::Undefined) kernel.dtype = tensor.scalar_type();
    return static_cast<double>(std::min(tensor.nbytes(), tensor.storage().nbytes()));  // an expanded one is less
  }
};

namespace {
thread_local KernelCounter* kernel_counter = nullptr;
}  // namespace

KernelCounter::KernelCounter() {
  TORCH_CHECK(kernel_counter == nullptr, "one KernelCounter a thread");
  kernel_counter = this;
  handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&KernelCounter::started, &KernelCounter::ended)
                                           .needsInputs(true)
                                           .needsOutputs(true)
                                           .scopes({at::RecordScope::FUNCTION}));
}

KernelCounter::~KernelCounter() {
  at::removeCallback(handle_);
  kernel_counter = nullptr;
}

std::vector<Kernel> KernelCounter::take() { return std::exchange(kernels_, {}); }

std::unique_ptr<at::ObserverContext> KernelCounter::started(const at::RecordFunction& call) {
  auto here = std::make_unique<Call>();
  here->counter = kernel_counter;
  here->outer = std::exchange(kernel_counter->innermost_, here.get());
  here->traits = &traits_of(call);
  here->inside_fused = here->traits->fused || (here->outer != nullptr && here->outer->inside_fused);
  const bool counts = here->traits->starts && (here->outer == nullptr || !here->outer->inside_fused);
  if (!counts) return here;
  const auto inputs = call.inputs();
  if (here->traits->adds) here->bytes_of(inputs[1]);  // the factors' dtype is the product's
  for (size_t i = 0; i < std::min(inputs.size(), here->traits->reads.size()); ++i) {
    const double bytes = here->bytes_of(inputs[i]);
    if (here->traits->reads[i] && !(here->traits->gathers && i == 0)) here->kernel.bytes += bytes;
    if (here->traits->changes[i]) here->changed += bytes;
  }
  here->kernel.kind = here->traits->kind;
  here->kernel.flop = flop_of_call(call);
  if (here->kernel.flop > 0.0 && here->kernel.kind == Kind::pointwise) here->kernel.kind = Kind::product;
  return here;
}

void KernelCounter::ended(const at::RecordFunction& call, at::ObserverContext* context) {
  auto& here = *static_cast<Call*>(context);
  here.counter->innermost_ = here.outer;
  const bool in_fused = here.outer != nullptr && here.outer->inside_fused;
  const bool is_made_of_others = here.started && !here.traits->fused && here.kernel.flop == 0.0;
  if (here.traits->starts && !in_fused && !is_made_of_others) {
    double returned = 0.0;
    for (const c10::IValue& output : call.outputs()) returned += here.bytes_of(output);
    here.kernel.bytes += here.changed > 0.0 ? here.changed : returned;
    if (here.traits->gathers) here.kernel.bytes += returned;
    if (here.on_meta) {
      here.counter->kernels_.push_back(here.kernel);
      here.started = true;
    }
  }
  if (here.outer != nullptr && here.started) here.outer->started = true;
}

}  // namespace flashmorph
