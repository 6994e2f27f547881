#include "core/ops/documents.h"

#include <ATen/ATen.h>

namespace flashmorph {

int64_t check_documents(const char* name, const at::Tensor& documents, int64_t batch, int64_t tokens) {
  TORCH_CHECK(batch == 1, name, ": packed documents lie in one row, the batch is ", batch);
  TORCH_CHECK(
      documents.dim() == 1 && documents.size(0) >= 2 && documents.scalar_type() == at::kLong && documents.is_cpu(),
      name, ": documents must be int64 offsets on the CPU, one more than there are documents");
  const at::Tensor offsets = documents.contiguous();
  const int64_t *first = offsets.const_data_ptr<int64_t>(), *last = first + offsets.size(0) - 1;
  TORCH_CHECK(*first == 0 && *last == tokens, name, ": documents must go from 0 to ", tokens, ", found ", *first,
              " to ", *last);
  for (const int64_t* at = first; at < last; ++at)
    TORCH_CHECK(at[0] < at[1], name, ": documents must increase, found ", at[1], " after ", at[0]);
  return documents.size(0) - 1;
}

}  // namespace flashmorph
