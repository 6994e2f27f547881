#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// Some rows of x, for a reader beside those who read all of it.
struct RowsRead {
  at::Tensor x;     // for the others; the gradient that comes back through it is where the rows' is added
  at::Tensor rows;  // [index's, D]
};

// x [.., D], `index` of its rows in order, each once. No tensor of x's size is made on the way back, unless somebody
// else still holds the gradient of x.
RowsRead read_rows(const at::Tensor& x, const at::Tensor& index);

}  // namespace flashmorph
