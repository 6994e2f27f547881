#pragma once

#include <ATen/ATen.h>

namespace flashmorph::test {

// RMS(actual - expected) / RMS(expected), in float64.
inline double relative_error(const at::Tensor& expected, const at::Tensor& actual) {
  const at::Tensor exact = expected.detach().to(at::kDouble).cpu();
  const at::Tensor difference = actual.detach().to(at::kDouble).cpu() - exact;
  const double scale = exact.norm().item<double>();
  const double error = difference.norm().item<double>();
  return scale == 0.0 ? error : error / scale;
}

inline double max_abs_error(const at::Tensor& expected, const at::Tensor& actual) {
  if (expected.numel() == 0) return 0.0;
  return (actual.detach().to(at::kDouble).cpu() - expected.detach().to(at::kDouble).cpu()).abs().max().item<double>();
}

}  // namespace flashmorph::test
