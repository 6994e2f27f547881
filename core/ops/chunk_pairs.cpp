#include "core/ops/chunk_pairs.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

namespace flashmorph {

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

at::Tensor sum_across(const at::Tensor& a_GCC, const at::Tensor& b_GCC, const at::Tensor& c_GCC,
                      const at::Tensor& d_GCC) {
  const int64_t G = a_GCC.size(0), C = a_GCC.size(1);
  at::Tensor sums = at::zeros({G, C}, a_GCC.options());
  if (sums.is_meta()) return sums;
  AT_DISPATCH_FLOATING_TYPES(a_GCC.scalar_type(), "sum_across", [&] {
    at::parallel_for(0, G, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t table = g * C * C;
        const scalar_t *a = a_GCC.const_data_ptr<scalar_t>() + table, *b = b_GCC.const_data_ptr<scalar_t>() + table,
                       *c = c_GCC.const_data_ptr<scalar_t>() + table, *d = d_GCC.const_data_ptr<scalar_t>() + table;
        scalar_t* sum = sums.data_ptr<scalar_t>() + g * C;
        for (int64_t i = 1; i < C; ++i) {
          const int64_t row = i * C;
          scalar_t before = 0;  // the pairs (i, j < m)
          for (int64_t m = 1; m <= i; ++m) {
            before += a[row + m - 1] * b[row + m - 1] + c[row + m - 1] * d[row + m - 1];
            sum[m] += before;
          }
        }
      }
    });
  });
  return sums;
}

}  // namespace flashmorph
