#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// How this folder declares an operator of torch.ops.flashmorph and its gradient: one struct says what belongs together,
//
//   struct RmsNorm : Operator {
//     static constexpr const char* kName = "rms_norm";
//     using Forward = at::Tensor(const at::Tensor& x, const at::Tensor& weight, double epsilon);
//     using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& dy, const at::Tensor& x, ...);
//     static constexpr std::array<size_t, 2> kTrained = {0, 1};
//     static void check(const at::Tensor& x, const at::Tensor& weight, double epsilon);  // throws c10::Error
//   };
//
// declare<RmsNorm>() makes it known with its backward on the Autograd key, call<RmsNorm>() goes through the dispatcher,
// and TORCH_LIBRARY_IMPL gives each device its rms_norm and rms_norm_backward.

namespace flashmorph {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::variable_list;

inline OptionalTensor present(const at::Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

// What most operators are. Forward's parameters are tensors, optional tensors and numbers. Backward takes the gradients
// of the outputs, Forward's arguments, the outputs that it reads, the results beyond the outputs and, if it wants to
// know which gradients are asked for, last a std::array<bool> over kTrained; it returns the gradients of kTrained. A
// gradient of an output is zeros when there is none, or absent where Backward takes an OptionalTensor.
struct Operator {
  static constexpr std::array<size_t, 0> kUnread = {};  // arguments that Backward is not given: they are not kept
  static constexpr size_t kOutputs = 1;                 // results beyond these are for Backward and have no gradient
  static constexpr size_t kOutputsRead = 0;             // by Backward: so many, the last ones
  static constexpr size_t kOutputLike = 0;  // of several outputs: the argument that the first one has the shape of
};

namespace detail {

template <class Range>
constexpr bool contains(const Range& range, size_t value) {
  return std::find(range.begin(), range.end(), value) != range.end();
}

inline variable_list list_of(const at::Tensor& x) { return {x}; }
inline variable_list list_of(const variable_list& x) { return x; }
template <class... Tensor>
variable_list list_of(const std::tuple<Tensor...>& all) {
  return std::apply([](const auto&... x) { return variable_list{x...}; }, all);
}

// The first tensors of `all` replaced.
inline at::Tensor with_outputs(const at::Tensor&, const variable_list& outputs) { return outputs[0]; }
template <class... Tensor>
std::tuple<Tensor...> with_outputs(std::tuple<Tensor...> all, const variable_list& outputs) {
  size_t i = 0;
  const auto replace = [&](at::Tensor& x) {
    if (i < outputs.size()) x = outputs[i++];
  };
  std::apply([&](auto&... x) { (replace(x), ...); }, all);
  return all;
}

template <class Signature>
auto find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("flashmorph::" + name).c_str(), "").typed<Signature>();
}

template <class Op>
const auto& forward_of() {
  static const auto op = find<typename Op::Forward>(Op::kName);
  return op;
}

template <class Op>
const auto& backward_of() {
  static const auto op = find<typename Op::Backward>(std::string(Op::kName) + "_backward");
  return op;
}

template <class Op, class Forward = typename Op::Forward, class Backward = typename Op::Backward>
struct Differentiable;

template <class Op, class Results, class... Argument, class Gradients, class... Given>
struct Differentiable<Op, Results(Argument...), Gradients(Given...)>
    : torch::autograd::Function<Differentiable<Op, Results(Argument...), Gradients(Given...)>> {
  using Context = torch::autograd::AutogradContext;
  using Arguments = std::tuple<std::decay_t<Argument>...>;
  using Places = std::index_sequence_for<Argument...>;
  template <size_t I>
  using ArgumentAt = std::tuple_element_t<I, Arguments>;
  template <size_t I>
  using GivenAt = std::tuple_element_t<I, std::tuple<std::decay_t<Given>...>>;

  template <size_t I>
  static constexpr bool kIsRequired = std::is_same_v<ArgumentAt<I>, at::Tensor>;
  template <size_t I>
  static constexpr bool kIsTensor = kIsRequired<I> || std::is_same_v<ArgumentAt<I>, OptionalTensor>;
  template <size_t I>
  static constexpr bool kIsRead = !contains(Op::kUnread, I);

  // How many of the arguments before this one are tensors, and of these are kept.
  template <size_t I>
  static constexpr size_t tensors_before(bool kept) {
    return []<size_t... J>(bool only_kept, std::index_sequence<J...>) {
      return (size_t{0} + ... + (kIsTensor<J> && (kIsRead<J> || !only_kept) ? 1 : 0));
    }
    (kept, std::make_index_sequence<I>());
  }

  template <size_t I>
  static constexpr size_t required_before() {
    return []<size_t... J>(std::index_sequence<J...>) { return (size_t{0} + ... + (kIsRequired<J> ? 1 : 0)); }
    (std::make_index_sequence<I>());
  }

  static constexpr size_t kArgumentsRead = sizeof...(Argument) - Op::kUnread.size();
  static constexpr size_t kTensorsKept = tensors_before<sizeof...(Argument)>(/*kept=*/true);
  static constexpr bool kAsksWhich =
      std::is_same_v<GivenAt<sizeof...(Given) - 1>, std::array<bool, Op::kTrained.size()>>;
  static constexpr size_t kExtraResults = sizeof...(Given) - Op::kOutputs - kArgumentsRead - (kAsksWhich ? 1 : 0);

  static variable_list forward(Context* context, Results* all, const std::decay_t<Argument>&... argument) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    *all = forward_of<Op>().call(argument...);
    variable_list outputs = list_of(*all), saved;
    [&]<size_t... I>(std::index_sequence<I...>) { (keep<I>(context, saved, argument), ...); }
    (Places());
    saved.insert(saved.end(), outputs.begin() + Op::kOutputs - Op::kOutputsRead, outputs.end());
    context->save_for_backward(saved);
    context->set_materialize_grads(Op::kOutputs == 1);
    outputs.resize(Op::kOutputs);
    return outputs;
  }

  static variable_list backward(Context* context, const variable_list& upstream) {
    const variable_list saved = context->get_saved_variables();
    const variable_list gradients = [&]<size_t... O, size_t... I, size_t... E>(
        std::index_sequence<O...>, std::index_sequence<I...>, std::index_sequence<E...>) {
      const auto given =
          std::tuple_cat(std::tuple(gradient_of<O>(upstream, saved)...), argument<I>(context, saved)...,
                         std::tuple(as<GivenAt<Op::kOutputs + kArgumentsRead + E>>(saved[kTensorsKept + E])...),
                         which(context, saved));
      return list_of(std::apply([](const auto&... x) { return backward_of<Op>().call(x...); }, given));
    }
    (std::make_index_sequence<Op::kOutputs>(), Places(), std::make_index_sequence<kExtraResults>());

    variable_list of_arguments(1 + sizeof...(Argument));  // the first is forward's `all`
    [&]<size_t... N>(std::index_sequence<N...>) {
      ((is_there<Op::kTrained[N]>(saved) ? void(of_arguments[1 + Op::kTrained[N]] = gradients[N]) : void()), ...);
    }
    (std::make_index_sequence<Op::kTrained.size()>());
    return of_arguments;
  }

  // The operator on the Autograd key. What is not trained leaves the graph.
  static Results differentiable(Argument... argument) {
    Op::check(argument...);
    if (!c10::GradMode::is_enabled()) {  // the host has no node to make
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      return forward_of<Op>().call(argument...);
    }
    Results all;
    const variable_list outputs = [&]<size_t... I>(std::index_sequence<I...>) {
      return Differentiable::apply(&all, in_graph<I>(argument)...);
    }
    (Places());
    return with_outputs(all, outputs);
  }

 private:
  template <size_t I>
  static ArgumentAt<I> in_graph(const ArgumentAt<I>& x) {
    if constexpr (kIsRequired<I> && !contains(Op::kTrained, I)) return x.requires_grad() ? x.detach() : x;
    if constexpr (kIsTensor<I> && !kIsRequired<I> && !contains(Op::kTrained, I))
      return x && x->requires_grad() ? x->detach() : x;
    return x;
  }

  template <size_t I>
  static void keep(Context* context, variable_list& saved, const ArgumentAt<I>& x) {
    if constexpr (!kIsRead<I>)
      return;
    else if constexpr (kIsRequired<I>)
      saved.push_back(x);
    else if constexpr (kIsTensor<I>)
      saved.push_back(x.value_or(at::Tensor()));
    else
      context->saved_data[std::to_string(I)] = x;
  }

  template <size_t I>
  static auto argument(Context* context, const variable_list& saved) {
    if constexpr (!kIsRead<I>)
      return std::tuple();
    else if constexpr (kIsTensor<I>)
      return std::tuple(as<ArgumentAt<I>>(saved[tensors_before<I>(/*kept=*/true)]));
    else
      return std::tuple(context->saved_data[std::to_string(I)].template to<ArgumentAt<I>>());
  }

  template <class Wanted>
  static Wanted as(const at::Tensor& x) {
    if constexpr (std::is_same_v<Wanted, OptionalTensor>)
      return present(x);
    else
      return x;
  }

  template <size_t O>
  static GivenAt<O> gradient_of(const variable_list& upstream, const variable_list& saved) {
    if constexpr (Op::kOutputs > 1 && std::is_same_v<GivenAt<O>, at::Tensor>)
      if (!upstream[O].defined()) return at::zeros_like(saved[tensors_before<Op::kOutputLike>(/*kept=*/true)]);
    return as<GivenAt<O>>(upstream[O]);
  }

  template <size_t I>
  static bool is_there(const variable_list& saved) {
    if constexpr (kIsRequired<I>)
      return true;
    else
      return saved[tensors_before<I>(/*kept=*/true)].defined();
  }

  // Absent tensors have no place among the graph's edges: no optional one may stand before one that is trained.
  static auto which(const Context* context, const variable_list& saved) {
    if constexpr (kAsksWhich) {
      return [&]<size_t... N>(std::index_sequence<N...>) {
        static_assert(((required_before<Op::kTrained[N]>() == tensors_before<Op::kTrained[N]>(/*kept=*/false)) && ...));
        return std::tuple(std::array<bool, Op::kTrained.size()>{
            is_there<Op::kTrained[N]>(saved) &&
            context->needs_input_grad(tensors_before<Op::kTrained[N]>(/*kept=*/false))...});
      }
      (std::make_index_sequence<Op::kTrained.size()>());
    } else {
      return std::tuple();
    }
  }
};

}  // namespace detail

// forward, backward: what follows the names in their schemas.
template <class Op>
void declare(torch::Library& library, const std::string& forward, const std::string& backward) {
  library.def((Op::kName + forward).c_str());
  library.def((Op::kName + ("_backward" + backward)).c_str());
  library.impl(Op::kName, torch::dispatch(c10::DispatchKey::Autograd, &detail::Differentiable<Op>::differentiable));
}

template <class Op, class... Argument>
auto call(const Argument&... argument) {
  return detail::forward_of<Op>().call(argument...);
}

}  // namespace flashmorph
