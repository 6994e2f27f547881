#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// Offsets of documents packed in a row: [S + 1], int64 on the host, from 0 to `tokens`, increasing. Checks that they
// are, for the operator `name` and a batch of one row, and says how many documents they describe. c10::Error.
int64_t check_documents(const char* name, const at::Tensor& offsets_S1, int64_t batch, int64_t tokens);

}  // namespace flashmorph
