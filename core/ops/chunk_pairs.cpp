#include "core/ops/chunk_pairs.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

namespace flashmorph {
namespace {

// The sums over pairs whose value is value(place among all tables).
template <class Scalar, class Value>
void add_pairs(at::Tensor& sums_GC, const Value& value) {
  const int64_t G = sums_GC.size(0), C = sums_GC.size(1);
  at::parallel_for(0, G, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      Scalar* sum = sums_GC.data_ptr<Scalar>() + g * C;
      for (int64_t i = 1; i < C; ++i) {
        const int64_t row = (g * C + i) * C;
        Scalar before = 0;  // the pairs (i, j < m)
        for (int64_t m = 1; m <= i; ++m) {
          before += value(row + m - 1);
          sum[m] += before;
        }
      }
    }
  });
}

}  // namespace

at::Tensor decay_table(const at::Tensor& b_GC, at::ScalarType dtype) {
  const int64_t G = b_GC.size(0), C = b_GC.size(1);
  at::Tensor table = at::empty({G, C, C}, b_GC.options().dtype(dtype));
  if (table.is_meta()) return table;
  AT_DISPATCH_FLOATING_TYPES(dtype, "decay_table", [&] {
    at::parallel_for(0, G, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const double* b = b_GC.const_data_ptr<double>() + g * C;
        scalar_t* row = table.data_ptr<scalar_t>() + g * C * C;
        for (int64_t i = 0; i < C; ++i, row += C) {
          for (int64_t j = 0; j <= i; ++j) row[j] = static_cast<scalar_t>(b[i] - b[j]);
          std::fill(row + i + 1, row + C, -std::numeric_limits<scalar_t>::infinity());
        }
      }
    });
  });
  return table.exp_();
}

at::Tensor sum_across(const at::Tensor& a_GCC, const at::Tensor& b_GCC) {
  at::Tensor sums = at::zeros({a_GCC.size(0), a_GCC.size(1)}, a_GCC.options());
  if (sums.is_meta()) return sums;
  AT_DISPATCH_FLOATING_TYPES(a_GCC.scalar_type(), "sum_across", [&] {
    const scalar_t *a = a_GCC.const_data_ptr<scalar_t>(), *b = b_GCC.const_data_ptr<scalar_t>();
    add_pairs<scalar_t>(sums, [=](int64_t place) { return a[place] * b[place]; });
  });
  return sums;
}

at::Tensor sum_across(const at::Tensor& a_GCC, const at::Tensor& b_GCC, const at::Tensor& c_GCC,
                      const at::Tensor& d_GCC) {
  at::Tensor sums = at::zeros({a_GCC.size(0), a_GCC.size(1)}, a_GCC.options());
  if (sums.is_meta()) return sums;
  AT_DISPATCH_FLOATING_TYPES(a_GCC.scalar_type(), "sum_across", [&] {
    const scalar_t *a = a_GCC.const_data_ptr<scalar_t>(), *b = b_GCC.const_data_ptr<scalar_t>(),
                   *c = c_GCC.const_data_ptr<scalar_t>(), *d = d_GCC.const_data_ptr<scalar_t>();
    add_pairs<scalar_t>(sums, [=](int64_t place) { return a[place] * b[place] + c[place] * d[place]; });
  });
  return sums;
}

at::Tensor sum_from(const at::Tensor& x_GC) { return x_GC.flip(1).cumsum(1).flip(1); }

at::Tensor sum_before(const at::Tensor& x_GC) {
  return at::constant_pad_nd(x_GC.narrow(1, 0, x_GC.size(1) - 1), {1, 0}).cumsum(1);
}

}  // namespace flashmorph
