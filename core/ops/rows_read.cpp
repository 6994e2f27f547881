#include "core/ops/rows_read.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Nobody sees a change of it but who holds this reference.
bool is_ours_alone(const at::Tensor& x) {
  return x.use_count() == 1 && x.has_storage() && x.storage().use_count() == 1 && x.is_contiguous();
}

struct ReadRows : torch::autograd::Function<ReadRows> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& index) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({index});
    context->set_materialize_grads(false);
    context->saved_data["sizes"] = x.sizes();
    return {x.alias(), x.flatten(0, -2).index_select(0, index)};
  }

  static variable_list backward(AutogradContext* context, variable_list& upstream) {  // alone in holding them
    at::Tensor dx = std::move(upstream[0]);
    const at::Tensor& d_rows = upstream[1];
    if (d_rows.defined()) {
      const std::vector<int64_t> sizes = context->saved_data["sizes"].toIntVector();
      if (!dx.defined())
        dx = at::zeros(sizes, d_rows.options());
      else if (!is_ours_alone(dx))
        dx = dx.clone(at::MemoryFormat::Contiguous);
      dx.view({-1, sizes.back()}).index_add_(0, context->get_saved_variables()[0], d_rows);
    }
    return {dx, at::Tensor()};
  }
};

}  // namespace

RowsRead read_rows(const at::Tensor& x, const at::Tensor& index) {
  if (!c10::GradMode::is_enabled() || !x.requires_grad()) return {x, x.flatten(0, -2).index_select(0, index)};
  const variable_list read = ReadRows::apply(x, index);
  return {read[0], read[1]};
}

}  // namespace flashmorph
