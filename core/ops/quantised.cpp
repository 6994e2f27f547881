#include "core/ops/quantised.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/ops/operator.h"
#include "core/ops/projection.h"

namespace flashmorph {
namespace {

constexpr int64_t kMultiple = 16;  // of a card's products

using Quantised = std::tuple<at::Tensor, at::Tensor>;

// True divisions: dividing by a number would multiply by its inverse on a card.
Quantised quantised(at::TensorList x) {
  const at::Tensor x_ND = (x.size() == 1 ? x[0] : at::cat(x, 1)).to(at::kFloat);
  const at::Tensor largest_N1 = x_ND.abs().amax(1, /*keepdim=*/true).clamp_min(kLeastOfRow);
  const at::Tensor most = at::full({1}, kLargestFloat8, x_ND.options());
  return {(x_ND * most.div(largest_N1)).to(at::kFloat8_e4m3fn), largest_N1.div(most)};
}

Quantised quantise_without_values(at::TensorList x) {
  int64_t width = 0;
  for (const at::Tensor& one : x) width += one.size(1);
  const auto options = x[0].options().requires_grad(false);
  return {at::empty({x[0].size(0), width}, options.dtype(at::kFloat8_e4m3fn)),
          at::empty({x[0].size(0), 1}, options.dtype(at::kFloat))};
}

void check_rows(at::TensorList x) {
  TORCH_CHECK(!x.empty(), "quantise_rows: no matrices");
  for (const at::Tensor& one : x) {
    TORCH_CHECK(one.dim() == 2 && one.size(0) == x[0].size(0) && one.size(1) > 0 && one.size(1) % kMultiple == 0,
                "quantise_rows: matrices must have as many rows and a multiple of ", kMultiple, " columns, got ",
                one.sizes(), " beside ", x[0].sizes());
    TORCH_CHECK((one.scalar_type() == at::kFloat || one.scalar_type() == at::kBFloat16) &&
                    one.scalar_type() == x[0].scalar_type(),
                "quantise_rows: matrices must be float32 or bfloat16, all of them, got ", one.scalar_type());
  }
}

std::vector<at::Tensor> project_in_float8(const at::Tensor& x, at::TensorList weights) {
  TORCH_CHECK(QuantisedMatrices::fit(weights), "project_in_float8: sides must be multiples of ", kMultiple);
  return QuantisedMatrices(weights, c10::GradMode::is_enabled() && x.requires_grad()).project(x, {});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("quantise_rows(Tensor[] x) -> (Tensor, Tensor)");
  library.def("project_in_float8(Tensor x, Tensor[] weights) -> Tensor[]", project_in_float8);
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) { library.impl("quantise_rows", quantised); }
TORCH_LIBRARY_IMPL(flashmorph, Meta, library) { library.impl("quantise_rows", quantise_without_values); }

QuantisedRows quantise_rows(at::TensorList x) {
  static const auto op = detail::find<Quantised(at::TensorList)>("quantise_rows");
  check_rows(x);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto [value_ND, scale_N1] = op.call(x);
  return {value_ND, scale_N1};
}

at::Tensor quantised_product(const QuantisedRows& a, const QuantisedRows& b, at::ScalarType dtype) {
  const at::Tensor scale_1E = b.scale_N1.t();
  if (!a.value_ND.is_cpu())
    return at::_scaled_mm(a.value_ND, b.value_ND.t(), a.scale_N1, scale_1E, /*bias=*/{}, /*scale_result=*/{}, dtype);
  const at::Tensor sum_NE = product(a.value_ND.to(at::kFloat), b.value_ND.to(at::kFloat).t());
  return sum_NE.mul_(a.scale_N1).mul_(scale_1E).to(dtype);
}

// One node of the graph for all of the matrices.
struct ProjectInFloat8 : torch::autograd::Function<ProjectInFloat8> {
  using Context = torch::autograd::AutogradContext;

  static variable_list outputs(const at::Tensor& x, const QuantisedMatrices& by, at::TensorList biases) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const QuantisedRows rows = quantise_rows(x.flatten(0, -2));
    variable_list y;
    for (int64_t i = 0, first = 0; i < static_cast<int64_t>(by.sizes_.size()); first += by.sizes_[i++]) {
      const auto own = [&](const at::Tensor& all) { return all.narrow(0, first, by.sizes_[i]); };
      const at::Tensor y_NE =
          quantised_product(rows, {own(by.rows_.value_ND), own(by.rows_.scale_N1)}, x.scalar_type());
      if (!biases.empty()) y_NE.add_(biases[i]);
      y.push_back(y_NE.unflatten(0, x.sizes().slice(0, x.dim() - 1)));
    }
    return y;
  }

  static variable_list forward(Context* context, const at::Tensor& x, const QuantisedMatrices* by,
                               at::TensorList biases) {
    TORCH_CHECK(!x.requires_grad() || by->columns_.value_ND.defined(),
                "these frozen projections were quantised for the forward pass alone, and x needs a gradient");
    TORCH_CHECK(std::ranges::none_of(biases, [](const at::Tensor& bias) { return bias.requires_grad(); }),
                "frozen projections in float8 have frozen biases");
    context->save_for_backward({by->columns_.value_ND, by->columns_.scale_N1});
    context->saved_data["biases"] = static_cast<int64_t>(biases.size());
    return outputs(x, *by, biases);
  }

  static variable_list backward(Context* context, const variable_list& upstream) {
    const variable_list columns = context->get_saved_variables();
    variable_list gradients(2 + context->saved_data["biases"].toInt()), dy_NE;
    for (const at::Tensor& dy : upstream) dy_NE.push_back(dy.flatten(0, -2));
    const at::Tensor dx = quantised_product(quantise_rows(dy_NE), {columns[0], columns[1]}, upstream[0].scalar_type());
    gradients[0] = dx.unflatten(0, upstream[0].sizes().slice(0, upstream[0].dim() - 1));
    return gradients;
  }
};

QuantisedMatrices::QuantisedMatrices(at::TensorList weights, bool going_back) {
  const c10::NoGradGuard no_gradient;
  std::vector<at::Tensor> turned;
  for (const at::Tensor& weight : weights) {
    members_.emplace_back(weight.unsafeGetTensorImpl(), weight._version());
    sizes_.push_back(weight.size(0));
    turned.push_back(weight.t());
  }
  rows_ = quantise_rows(at::cat(weights));
  if (going_back) columns_ = quantise_rows(turned);
}

bool QuantisedMatrices::fit(at::TensorList weights) {
  return std::ranges::all_of(weights, [](const at::Tensor& weight) {
    return weight.dim() == 2 && weight.size(0) % kMultiple == 0 && weight.size(1) % kMultiple == 0 &&
           weight.numel() > 0;
  });
}

const QuantisedMatrices* QuantisedMatrices::of(at::TensorList weights) {
  const auto* found = dynamic_cast<const QuantisedMatrices*>(weights[0].unsafeGetTensorImpl()->get_backend_meta());
  if (found == nullptr) return nullptr;
  const auto is_member = [](const at::Tensor& weight, const auto& member) {
    return weight.unsafeGetTensorImpl() == member.first && weight._version() == member.second &&
           !weight.requires_grad();
  };
  TORCH_CHECK(found->count() <= weights.size() &&
                  std::ranges::equal(weights.slice(0, found->count()), found->members_, is_member),
              "a frozen projection in float8 has changed, is trained, or is used with others than those that it was "
              "quantised with");
  return found;
}

std::vector<at::Tensor> QuantisedMatrices::project(const at::Tensor& x, at::TensorList biases) const {
  return c10::GradMode::is_enabled() ? ProjectInFloat8::apply(x, this, biases)
                                     : ProjectInFloat8::outputs(x, *this, biases);
}

std::vector<at::Tensor> QuantisedMatrices::tensors() const {
  std::vector<at::Tensor> all = {rows_.value_ND, rows_.scale_N1};
  if (columns_.value_ND.defined()) all.insert(all.end(), {columns_.value_ND, columns_.scale_N1});
  return all;
}

}  // namespace flashmorph
